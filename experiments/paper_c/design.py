"""The design of an experiment: its arms, its claims and the paper's numbers, from a TOML file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from experiments.paper_c.traces import DATA
from mechprobe.config import FrozenConfig, read_toml
from mechprobe.errors import ConfigError
from mechprobe.files import dump_json

HERE = Path(__file__).parent
SHIPPED = "lab"
"""Name of the lab's own base."""


class ArmConfig(FrozenConfig):
    """One kind of training."""

    data: str
    """Name of the training set, see `experiments.paper_c.traces.DATA`."""
    base: str = SHIPPED
    """The lab's base, or a size of the experiment ``sizes``, of which each seed pre-trains one."""
    n_items: int = 512
    prompts_per_step: int = 16
    epochs: float = 8
    schedule: Literal["cosine", "constant"] = "cosine"
    lr_factor: float = 1.0
    """Factor of the learning rate that was chosen on the dev split."""

    @model_validator(mode="after")
    def _known_data(self) -> "ArmConfig":
        if self.data not in DATA:
            raise ValueError(f"data '{self.data}' is unknown; give one of {', '.join(DATA)}")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.epochs * self.n_items / self.prompts_per_step))

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The paper's checkpoints but its first, scaled so that its 640 steps are 256 here, and one every 128 steps beyond that."""
        paper = [8, 16, 32, 64, 128, 192, *range(256, self.steps, 128)]
        return tuple(step for step in paper if step < self.steps)

    def key(self, lr: float, seed: int, size: Any = None) -> str:
        """Name of the folder of a run; arms of two experiments with equal settings share one."""
        settings = {**self.model_dump(mode="json"), "lr": lr * self.lr_factor, "size": size}
        settings.pop("lr_factor")
        return f"{self.data}-{hashlib.sha256(dump_json(settings).encode()).hexdigest()[:8]}-seed{seed}"


class SizeConfig(FrozenConfig):
    """Shape and pre-training of a base."""

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    steps: int
    batch_size: int


class ClaimConfig(FrozenConfig):
    """What the paper says, as a contrast that the lab can measure. The names of arms may hold ``{style}``."""

    text: str
    kind: Literal["score", "gain", "dip", "surge", "contraction", "length"] = "score"
    """``score``: final score of ``arm`` − that of ``against``. ``gain``: the same of the gains over each arm's own base. ``dip``: whether
    a skill that was not trained dips below base and recovers. ``surge``: longest mean response / that of base − 1. ``contraction``: last
    mean response / longest − 1. ``length``: last mean response of ``arm`` / that of ``against`` − 1."""
    on: str = "ood"
    """``id`` (the trained skill), ``ood`` (mean of the others), or a task."""
    arm: str
    against: str = "base"
    more: bool = True
    """Whether the paper says that the value is above ``than``; otherwise it is below."""
    than: float = 0.0
    paper: Mapping[str, tuple[float | str, ...]] = Field(default_factory=dict)
    """Benchmark → the paper's numbers for ``arm`` and for ``against``."""
    ours: bool = False
    """Whether the paper has no such condition, so that the claim does not enter the verdict."""
    styles: tuple[str, ...] | None = None
    """Styles for which it is made; None takes all of the experiment."""
    model: str = ""
    """The paper's model behind these numbers."""

    def arms_of(self, style: str) -> tuple[str, str]:
        """The names of ``arm`` and ``against``."""
        return self.arm.format(style=style), self.against.format(style=style)


class Experiment(FrozenConfig):
    """All of one experiment."""

    name: str
    title: str
    paper: str
    """What the paper claims, in one sentence."""
    where: str
    """Section or table of the paper."""
    styles: tuple[str, ...] = ("",)
    """Values of ``{style}`` in the claims; the verdict of the experiment is that of the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    unit: str = "the draw of the training items"
    """What differs between seeds."""
    n_per_task: int = 128
    arms: dict[str, ArmConfig]
    sizes: dict[str, SizeConfig] = Field(default_factory=dict)
    claims: tuple[ClaimConfig, ...]

    @model_validator(mode="after")
    def _known_arms(self) -> "Experiment":
        for style in self.styles:
            for name in (name for claim in self.claims_of(style) for name in claim.arms_of(style)):
                if name != "base" and name not in self.arms:
                    raise ValueError(f"a claim names the arm '{name}', which does not exist")
        for arm in self.arms.values():
            if arm.base != SHIPPED and arm.base not in self.sizes:
                raise ValueError(f"the base '{arm.base}' is no size")
        return self

    def claims_of(self, style: str) -> list[ClaimConfig]:
        """The claims of a style."""
        return [claim for claim in self.claims if claim.styles is None or style in claim.styles]


def names() -> list[str]:
    """Names of all experiments."""
    return sorted(path.stem for path in HERE.glob("*.toml") if path.stem != "select")


def load(name: str) -> Experiment:
    """Read the design of an experiment.

    Raises:
        ConfigError: There is none of this name, or its file is wrong.
    """
    if name not in names():
        raise ConfigError(f"There is no experiment '{name}'; give one of {', '.join(names())}.")
    return Experiment(name=name, **read_toml(HERE / f"{name}.toml"))


class Selection(FrozenConfig):
    """Which learning rate all experiments use, and how it is chosen."""

    arms: dict[str, ArmConfig]
    lrs: tuple[float, ...]
    seed: int
    within: float
    """The highest learning rate is taken whose mean accuracy on the dev items is this near to the best."""


def load_selection() -> Selection:
    """Read ``select.toml``."""
    return Selection(**read_toml(HERE / "select.toml"))
