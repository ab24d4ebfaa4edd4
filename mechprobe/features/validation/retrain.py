"""A crosscoder's own training settings, to train others that differ from it in one thing alone."""

from dataclasses import dataclass
from pathlib import Path

from mechprobe.errors import ArtifactError
from mechprobe.features.config import NullsConfig
from mechprobe.stage_folder import read_manifest
from sae_training import CrosscoderConfig, SaeTrainingError, TrainConfig


@dataclass(frozen=True)
class Recipe:
    """How a crosscoder was trained.

    Attributes:
        shape: Shape and kind.
        schedule: Schedule.
        site: Where.
        pool_rows: Rows mixed with each other in memory.
        seconds: Time its training took.
    """

    shape: CrosscoderConfig
    schedule: TrainConfig
    site: str
    pool_rows: int
    seconds: float

    @classmethod
    def of(cls, folder: Path | str) -> "Recipe":
        """Read the folder that ``mechprobe train-sae`` wrote.

        Raises:
            ArtifactError: The crosscoder was not trained there (an imported one says nothing of its training).
        """
        manifest = read_manifest(folder)
        config = manifest["config"]
        try:
            shape = CrosscoderConfig(**config["crosscoder"])
            schedule = TrainConfig(**config["training"])
            return cls(shape, schedule, config["site"], config["pool_rows"], float(manifest["seconds"]))
        except (KeyError, TypeError, SaeTrainingError) as error:
            raise ArtifactError(
                f"{folder} does not say how its crosscoder was trained ({error}); nulls and further seeds train others by "
                "the same settings, so give one that `mechprobe train-sae` wrote."
            ) from None

    def again(self, number: int, config: NullsConfig) -> "Recipe":
        """The settings of the ``number``-th further dictionary: another seed, and what ``config`` changes."""
        seed = self.schedule.seed + number
        init = {} if config.shared_init is None else {"shared_init": config.shared_init}
        length = {} if config.n_tokens is None else {"n_tokens": config.n_tokens}
        shape = self.shape.replace(seed=self.shape.seed + number, **init)
        return Recipe(
            shape, self.schedule.replace(seed=seed, **length), self.site, self.pool_rows, self._seconds(config)
        )

    def _seconds(self, config: NullsConfig) -> float:
        return self.seconds * (config.n_tokens or self.schedule.n_tokens) / self.schedule.n_tokens

    def cost(self, n_dictionaries: int, n_rows: int, config: NullsConfig) -> str:
        """What training and reading further dictionaries takes, in words; the time is that of the crosscoder itself."""
        n_tokens = config.n_tokens or self.schedule.n_tokens
        n_bytes = 4 * (2 * self.shape.d_all * self.shape.d_sae + self.shape.d_sae + self.shape.d_all)
        seconds = n_dictionaries * self._seconds(config)
        return (
            f"{n_dictionaries} dictionaries × {n_tokens:,} tokens of training (about {seconds:,.0f} s, from the time the "
            f"crosscoder took), {n_dictionaries * n_bytes / 1e6:,.1f} MB of weights on disk, "
            f"{n_dictionaries} × {n_rows:,} rows read"
        )
