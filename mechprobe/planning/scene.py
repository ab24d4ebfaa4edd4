"""What the cost of a stage depends on: settings, sizes of models, counts, and the rates of a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from mechprobe.cache.store.dtypes import row_bytes
from mechprobe.emergence.arms import with_checkpoints
from mechprobe.errors import ConfigError
from mechprobe.models.precision import AUTO
from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter
from mechprobe.planning.rates import Rates
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.work import Workload
from mechprobe.run_config import RunConfig
from sae_training import CrosscoderConfig, TrainConfig
from sae_training.errors import SaeTrainingError

_MARGIN = 1.02
_TOKEN_OVERHEAD = 1000
"""Bytes that a sequence takes as Python objects while the store is planned (ours)."""


@dataclass(frozen=True)
class Scene:
    """Everything that the cost of a stage depends on.

    Attributes:
        config: The settings of the run.
        shapes: Model name to its sizes.
        work: The counts.
        rates: The rates of the device.
        devices: Number of devices.
        known: Whether the rates are known; without them there is no time.
    """

    config: RunConfig
    shapes: Mapping[str, ModelShape]
    work: Workload
    rates: Rates
    devices: int = 1
    known: bool = True

    def meter(self, stage: str, *kits: str, opened: int | None = None) -> Meter:
        """The sum of a stage that imports these kits beside the program, and inspects ``opened`` folders of models; None: all.

        The fingerprint of a folder hashes its weights.
        """
        meter = Meter(stage, self.rates, self.dtype, "program", *kits, tf32=self.config.tf32)
        n, largest = len(self.shapes) if opened is None else opened, self.largest
        meter.work("opened", n)
        meter.work("hashed", n * largest.parameters * BYTES.get(largest.stored_as, 4))
        return meter

    @cached_property
    def largest(self) -> ModelShape:
        """The model with the most parameters."""
        return max(self.shapes.values(), key=lambda shape: shape.parameters)

    @property
    def dtype(self) -> str:
        """Dtype in which the models run. ``auto`` is that of their files on a card, and float32 on a CPU."""
        if self.config.dtype != AUTO:
            return self.config.dtype
        stored = self.largest.stored_as
        return stored if self.rates.device == "cuda" and stored in BYTES else "float32"

    @property
    def weights(self) -> int:
        """Bytes of the largest model."""
        return self.largest.weight_bytes(self.dtype)

    @property
    def length(self) -> float:
        """Mean number of tokens of a sequence of the store."""
        return self.work.rows / max(1, self.work.sequences)

    @property
    def d_all(self) -> int:
        """Width of all models of the crosscoder together."""
        return max(1, len(self.config.train_sae.sites)) * sum(shape.d_model for shape in self.chosen.values())

    @cached_property
    def chosen(self) -> dict[str, ModelShape]:
        """The models of the dictionary.

        Raises:
            ConfigError: ``train_sae.models`` names one that is not there.
        """
        names = self.config.train_sae.models or tuple(self.shapes)
        if missing := [name for name in names if name not in self.shapes]:
            raise ConfigError(
                f"train_sae.models names {missing[0]}, which is none of the models ({', '.join(self.shapes)})."
            )
        return {name: self.shapes[name] for name in names}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the store at one site, over all models."""
        return sum(row_bytes(self.config.cache.dtype, shape.d_model) for shape in self.shapes.values())

    @property
    def store_bytes(self) -> int:
        """Bytes of the activation store."""
        return int(_MARGIN * self.work.rows * max(1, len(self.config.cache.sites)) * self.row_bytes)

    @property
    def stored_rows(self) -> int:
        """Rows that stay on the disk: all, or those that modes ``stream`` and ``ring`` keep."""
        kept = self.config.train_sae.kept
        return self.work.rows if kept is None else min(self.work.rows, 2 * kept.rows)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the store that stays, which later stages map into memory."""
        return round(self.store_bytes * self.stored_rows / max(1, self.work.rows))

    @property
    def stream_bytes(self) -> int:
        """Bytes that the token stream takes in Python."""
        return _TOKEN_OVERHEAD * self.work.sequences

    @property
    def held_out_rows(self) -> float:
        """Rows that no dictionary is trained on."""
        return self.stored_rows * self.config.cache.held_out_frac

    def with_checkpoints(self, folder: str) -> dict[str, ModelShape]:
        """The models and the checkpoints of a folder, which have the sizes of the largest model."""
        names = with_checkpoints(self.config.models, folder) if folder else self.config.models
        return {name: self.shapes.get(name, self.largest) for name in names}

    @cached_property
    def dictionary(self) -> tuple[CrosscoderConfig, TrainConfig]:
        """The settings of the dictionary, as `TrainSaeConfig.resolve` gives them."""
        settings, widths = self.config.train_sae, [shape.d_model for shape in self.chosen.values()]
        given = {"d_sae": settings.d_sae, "variant": settings.variant, "k": settings.k}
        shape = {
            "n_models": len(widths),
            "model_names": tuple(self.chosen),
            "d_model": widths[0] if len(set(widths)) == 1 else tuple(widths),
            **{key: value for key, value in given.items() if value is not None},
        }
        schedule = {"n_tokens": settings.n_tokens, "batch_size": settings.batch_size, "lr": settings.lr}
        schedule = {key: value for key, value in schedule.items() if value is not None} | settings.training
        paper = settings.preset == "paper"
        if not paper:
            trained = round(self.work.rows * (1 - self.config.cache.held_out_frac))
            shape, schedule = {"d_sae": 16 * max(widths), **shape}, {"n_tokens": 4 * trained, **schedule}
        try:
            made = (CrosscoderConfig.paper if paper else CrosscoderConfig)(**{**shape, **settings.crosscoder})
            return made, (TrainConfig.paper if paper else TrainConfig)(**schedule)
        except SaeTrainingError as error:
            raise ConfigError(f"train-sae: {error}") from None

    @property
    def d_sae(self) -> int:
        """Latents of the dictionary."""
        return self.dictionary[0].d_sae

    @property
    def dictionary_bytes(self) -> int:
        """Bytes of the dictionary in float32."""
        return formulas.FLOAT * formulas.crosscoder_weights(self.d_all, self.d_sae)

    @property
    def n_tasks(self) -> int:
        """Number of tasks, at least one."""
        return max(1, self.work.tasks)

    def batches(self, n: int | float, batch: int) -> int:
        """Batches of ``n`` prompts."""
        return max(1, ceil(n / batch))
