"""What nulls and further seeds have in common: dictionaries trained like the run's crosscoder, and their tables."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ArtifactError
from mechprobe.features.config import FeaturesConfig, NullsConfig
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.stage_folder import Stage, read_manifest
from sae_training import Crosscoder, CrosscoderConfig, SaeTrainingError, TrainConfig

TabledDictionary = tuple[Crosscoder, FeatureTable]
"""A dictionary and the table of its features."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a crosscoder was trained; ``seconds`` is the duration of the training."""

    shape: CrosscoderConfig
    schedule: TrainConfig
    site: str
    pool_rows: int
    seconds: float

    @classmethod
    def of(cls, folder: Path | str) -> "TrainingSettings":
        """Read the folder that ``mechprobe train-sae`` wrote.

        Raises:
            ArtifactError: The folder does not record a training, as that of an imported crosscoder.
        """
        manifest = read_manifest(folder)
        config = manifest["config"]
        try:
            shape, schedule = CrosscoderConfig(**config["crosscoder"]), TrainConfig(**config["training"])
            return cls(shape, schedule, config["site"], config["pool_rows"], float(manifest["seconds"]))
        except (KeyError, TypeError, SaeTrainingError) as error:
            raise ArtifactError(
                f"{folder} does not record how its crosscoder was trained ({error}). Nulls and further seeds train others with "
                "the same settings; give a crosscoder that `mechprobe train-sae` wrote."
            ) from None

    def again(self, number: int, config: NullsConfig) -> "TrainingSettings":
        """The settings of the further dictionary ``number``: another seed, and the changes in ``config``."""
        given = config.model_dump(include={"shared_init"}, exclude_none=True)
        shape = self.shape.replace(seed=self.shape.seed + number, **given)
        n_tokens = config.n_tokens or self.schedule.n_tokens
        schedule = self.schedule.replace(seed=self.schedule.seed + number, n_tokens=n_tokens)
        return replace(self, shape=shape, schedule=schedule, seconds=self._seconds(config))

    def _seconds(self, config: NullsConfig) -> float:
        return self.seconds * (config.n_tokens or self.schedule.n_tokens) / self.schedule.n_tokens

    def cost(self, n_dictionaries: int, n_rows: int, config: NullsConfig) -> str:
        """The cost of training and reading further dictionaries, in words. The time is estimated from the crosscoder's."""
        n_tokens = config.n_tokens or self.schedule.n_tokens
        n_bytes = 4 * (2 * self.shape.d_all * self.shape.d_sae + self.shape.d_sae + self.shape.d_all)
        seconds = n_dictionaries * self._seconds(config)
        return (
            f"{n_dictionaries} dictionaries × {n_tokens:,} tokens of training (about {seconds:,.0f} s, from the time the "
            f"crosscoder took), {n_dictionaries * n_bytes / 1e6:,.1f} MB of weights on disk, "
            f"{n_dictionaries} × {n_rows:,} rows read"
        )


@dataclass(frozen=True)
class Retraining:
    """The run's crosscoder and store, and the settings under which further dictionaries are trained and described.

    ``crosscoder`` and ``cache`` are folders, ``config`` has its site filled in, and ``nulls`` has the changes to the training.
    """

    crosscoder: Path
    cache: Path
    store: ActivationStore
    training: TrainingSettings
    config: FeaturesConfig
    nulls: NullsConfig
    device: str

    @classmethod
    def open(
        cls,
        crosscoder: Path | str,
        cache: Path | str,
        config: FeaturesConfig | None,
        nulls: NullsConfig | None,
        device: str,
    ) -> "Retraining":
        """Open both folders; the defaults serve for settings that are None. Raises as `TrainingSettings.of` does."""
        training = TrainingSettings.of(crosscoder)
        store = ActivationStore.open(cache, models=training.shape.model_names)
        config = (config or FeaturesConfig()).with_site(crosscoder, store)
        return cls(Path(crosscoder), Path(cache), store, training, config, nulls or NullsConfig(), device)

    def again(self, number: int) -> TrainingSettings:
        """Training settings of dictionary ``number``, which has a seed of its own."""
        return self.training.again(number, self.nulls)

    def stage(
        self, out: Path | str, name: str, settings: Mapping[str, Any], *, force: bool
    ) -> AbstractContextManager[Stage]:
        """The stage folder; ``settings`` are the arguments of the stage besides its configuration."""
        dumped = {"nulls": self.nulls.model_dump(mode="json"), "features": self.config.model_dump(mode="json")}
        inputs: dict[str, Path | str] = {"crosscoder": self.crosscoder, "cache": self.cache}
        config, models = {**settings, **dumped}, self.store.fingerprints
        return Stage.open(out, name=name, config=config, inputs=inputs, models=models, force=force)
