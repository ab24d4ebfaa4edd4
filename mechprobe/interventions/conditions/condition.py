"""One condition of an intervention run: what is done to which model, with which features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mechprobe.dictionary.readout import Readout
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.result_rows import ConditionRow, SetKind
from mechprobe.types import ReadoutMode

How = Literal["clean", "edit", "patch", "vector", "shuffled", "prefix"]

EVERYWHERE = "mean difference"
LAST_PROMPT_TOKEN = "mean difference, last prompt token"
"""One-vector baselines: the mean residual difference, added at every position or at the last prompt token only."""


@dataclass(frozen=True)
class Condition:
    """One generation run over all tasks.

    Attributes:
        name: Unique and readable, for example ``rl|ablate|top50``.
        model: The host.
        edit: Text of the edit, or the name of what is done instead.
        features: Name of the feature set.
        set_kind: Role of the condition.
        how: Mechanism that runs it.
        ids: Features edited.
        donor: Model whose features or residual are put in.
        draw: Number of a random draw.
        write_ids: Features whose decoder directions an equal-norm control writes along.
        readout: Read-out, where it is not the default of the edit (joint for a transplant, the configured one for others).
        tasks: Tasks it runs on; empty for all.
    """

    name: str
    model: str
    edit: str
    features: str
    set_kind: SetKind
    how: How
    ids: tuple[int, ...] = ()
    donor: str | None = None
    draw: int | None = None
    write_ids: tuple[int, ...] = field(default=(), repr=False)
    readout: ReadoutMode | Literal[""] = ""
    tasks: tuple[str, ...] = ()


def readout_of(condition: Condition, config: InterveneConfig) -> Readout:
    """Read-out of a condition: its own, else ``joint`` for a transplant and the configured one for other edits."""
    default = "joint" if condition.edit == "transplant" else config.readout
    return Readout(condition.readout or default, config.near)


def condition_row(condition: Condition, config: InterveneConfig, change_of: Mapping[str, float]) -> ConditionRow:
    """What results say of a condition before any outcome; ``change_of`` maps conditions to relative changes."""
    reads = condition.how in ("edit", "shuffled") and Edit.parse(condition.edit).kind not in ("project", "steer")
    return ConditionRow(
        name=condition.name,
        model=condition.model,
        edit=condition.edit,
        features=condition.features,
        n_features=len(condition.ids),
        readout=str(readout_of(condition, config)) if reads else None,
        set_kind=condition.set_kind,
        draw=condition.draw,
        relative_change=change_of.get(condition.name),
    )


def other_readout(config: InterveneConfig) -> ReadoutMode:
    """The second read-out of the transplants, beside that of the verdict."""
    return "swap" if config.transplant_readout == "joint" else "joint"


def under_readout(features: str, mode: ReadoutMode) -> str:
    """Label of a set whose transplant uses the second read-out."""
    return f"{features}, {mode} read-out"
