"""The plan of a run: the costs of its stages for a card or this machine, as text and as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechprobe.emergence.arms import find_arms
from mechprobe.errors import ConfigError, ModelError, first_line, is_out_of_memory
from mechprobe.formatting import byte_size
from mechprobe.models.precision import check_dtype
from mechprobe.planning.beside import LISTED, SIDE
from mechprobe.planning.cards import UNVERIFIED
from mechprobe.planning.machine import measured_elsewhere
from mechprobe.planning.page import report_cost
from mechprobe.planning.rates import Rates
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.stage_cost import StageCost, countable, table
from mechprobe.planning.stages import STAGES
from mechprobe.planning.work import Assumed, Workload, count_work
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout

_MOST_DEVICES = 1 << 16


@dataclass(frozen=True)
class RunPlan:
    """The costs of the stages of a run.

    Attributes:
        costs: One per stage, in order.
        shapes: Model name to its sizes.
        work: What was counted or assumed.
        stored_rows: Tokens that stay in the store.
        rates: The device.
        devices: Number of devices.
        dtype: dtype of the models.
    """

    costs: Sequence[StageCost]
    shapes: Mapping[str, ModelShape]
    work: Workload
    stored_rows: int
    rates: Rates
    devices: int
    dtype: str

    @property
    def lines(self) -> list[str]:
        """A table, and what it rests on."""
        return [*self._head(), "", *table(self.costs, self.rates), "", *self._foot()]

    def _head(self) -> list[str]:
        sizes = {
            name: f"{shape.parameters / 1e9:.3g}B, width {shape.d_model}, {shape.n_layers} layers"
            for name, shape in self.shapes.items()
        }
        device = f"{self.devices} × {self.rates.name}" if self.rates.device == "cuda" else self.rates.name
        return [
            "models  " + "; ".join(f"{name} ({size})" for name, size in sizes.items()) + f"; {self.dtype}",
            f"device  {device}, {byte_size(self.rates.memory)}, rates {self.rates.source}",
            f"work    {self.work.prompts:,} prompts, {self.stored_rows:,} tokens in the store, {self.work.samples:,} task prompts",
        ]

    def _foot(self) -> list[str]:
        short = [cost.stage for cost in self.costs if cost.device_bytes > self.rates.memory]
        found = list(self.work.notes)
        if short:
            found.append(f"{', '.join(short)} would not fit in the memory of one device.")
        if self.devices > 1:
            shared = [cost.stage for cost in self.costs if cost.devices > 1]
            found.append(f"Several devices share {', '.join(shared)}; every other stage takes one.")
        without = sorted({shape.model_type for shape in self.shapes.values() if not shape.n_attention})
        if without:
            found.append(
                f"The config of {', '.join(without)} names no attention; neither it nor a cache or state is counted."
            )
        if self.rates.source == "published" and self.rates.name in UNVERIFIED:
            found.append(f"The peaks of {self.rates.name} are not verified against its data sheet.")
        return found + measured_elsewhere(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "stages": [cost.to_dict() for cost in self.costs],
            "models": {name: asdict(shape) for name, shape in self.shapes.items()},
            "work": {name: value for name, value in asdict(self.work).items() if not name.endswith("_lengths")},
            "rates": asdict(self.rates),
            "devices": self.devices,
            "dtype": self.dtype,
            "seconds": sum(cost.seconds or 0.0 for cost in self.costs),
        }


def stage_costs(scene: Scene) -> list[StageCost]:
    """The cost of every stage of the chain, then of the side stages whose section the settings have.

    ``localize`` is left out where the settings name the site.
    """
    left_out = ("localize",) if scene.config.cache.sites else ()
    costs = [cost(scene) for name, cost in STAGES.items() if name not in left_out]
    costs.append(report_cost(scene.rates, n_features=scene.d_sae, known=scene.known))
    return costs + [SIDE[name](scene, {}) for name in LISTED if name in scene.config.given and _possible(scene, name)]


def _possible(scene: Scene, name: str) -> bool:
    """Whether a side stage can run with these models: emergence needs checkpoints, and a section alone gives none."""
    if name != "emergence":
        return True
    try:
        return bool(find_arms(list(scene.with_checkpoints(scene.config.emergence.checkpoints)), scene.config.emergence))
    except ConfigError:
        return False


def plan_config(
    config: RunConfig,
    rates: Rates,
    *,
    devices: int = 1,
    model_config: Path | None = None,
    layout: RunLayout | None = None,
    assumed: Assumed | None = None,
) -> RunPlan:
    """Plan a run from its settings. Models need a ``config.json`` only; prompts and tasks that are missing are assumed.

    Args:
        config: The settings.
        rates: The device, measured or published.
        devices: Number of devices.
        model_config: A ``config.json`` that stands for every model.
        layout: A run folder whose finished stages know counts.
        assumed: What to take where files cannot be read.

    Raises:
        ConfigError: There are no models, or the number of devices is below one.
        ModelError: A model has no config that can be used, or the dtype is unknown.
    """
    config.require_models()
    check_dtype(config.dtype)
    if not 1 <= devices <= _MOST_DEVICES:
        raise ConfigError(f"--devices is {devices}; give a number from 1 to {_MOST_DEVICES:,}.")
    one = None if model_config is None else ModelShape.of_file(model_config)
    shapes = {name: one or _shape(name, path) for name, path in config.models.items()}
    depth = next(iter(shapes.values())).n_layers
    tokenizers = {} if one is not None else _tokenizers(config)
    context = min(shape.max_context for shape in shapes.values())
    with countable():
        work = count_work(config, layout, tokenizers, depth, (assumed or Assumed()).within(context))
        scene = Scene(config, shapes, work, rates, devices)
        return RunPlan(stage_costs(scene), shapes, work, scene.stored_rows, rates, devices, scene.dtype)


def _shape(name: str, path: str) -> ModelShape:
    """Sizes of a model: from its folder, or from the config alone where it is on the hub."""
    place = Path(path).expanduser()
    if place.is_dir():
        return ModelShape.of_file(place)
    if place.is_absolute() or path.startswith((".", "~")):
        raise ModelError(f"Model {name}: {path} does not exist; give a model folder, or --model-config FILE.")
    from transformers import AutoConfig

    from mechprobe.models.checkpoint_fit import quietly

    repository, revision = _on_hub(path)
    try:
        with quietly():
            config = AutoConfig.from_pretrained(repository, revision=revision)
    except Exception as error:  # noqa: BLE001 - the hub client raises many unrelated types
        raise ModelError(
            f"Model {name}: {path} is not a local folder, and the hub did not give its config ({first_line(error)}); "
            "give --model-config FILE, a config.json of this architecture."
        ) from None
    return ModelShape.of(config)


def _on_hub(path: str) -> tuple[str, str | None]:
    """Name and revision of a model of the hub."""
    name, _, revision = path.partition("@")
    return name, revision or None


def _tokenizers(config: RunConfig) -> dict[str, Any]:
    """The tokenizers that the text rule of a run may use: all for a chat template, else the first one; those that there are."""
    names = list(config.models) if config.text.chat_template else list(config.models)[:1]
    found = {name: _tokenizer(config.models[name]) for name in names}
    return {name: tokenizer for name, tokenizer in found.items() if tokenizer is not None}


def _tokenizer(path: str) -> Any:
    """The tokenizer of a model; None where there is none."""
    from transformers import AutoTokenizer

    place = Path(path).expanduser()
    name, revision = (str(place), None) if place.is_dir() else _on_hub(path)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None  # the plan then counts characters, and says so
