"""Typed records of the effects of one condition, and the number types that results share.

Accuracies and effects are shares of samples, from 0 to 1.
"""

import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator

from mechprobe.errors import ConfigError
from mechprobe.files import dump_json
from mechprobe.results import IntervalNumbers, Result

SetKind = Literal[
    "clean", "selected", "random", "recon", "opposite", "shuffled", "ceiling", "baseline", "size", "dose", "compare",
    "left_out",
]  # fmt: skip
"""Role of a condition; docs/interventions.md describes each."""


class Effect(NamedTuple):
    """A change of accuracy with its 95 % interval."""

    value: float
    low: float
    high: float


def _nan_for_null(value: Any) -> Any:
    return tuple(float("nan") if item is None else item for item in value) if isinstance(value, list) else value


Change = Annotated[Effect, BeforeValidator(_nan_for_null)]
"""``[value, low, high]`` in JSON, where null is NaN."""


def json_value(record: Result) -> dict[str, Any]:
    """A record as JSON holds it: NaN is None, and fields that were never set are left out."""
    return json.loads(dump_json(record.model_dump(by_alias=True, exclude_unset=True)))


class Collateral(Result):
    """What an edit does to the host's predictions on unrelated text, in nats per predicted token.

    Attributes:
        kl: KL(clean ‖ edited).
        ce_change: Cross-entropy of the edited host minus that of the clean host.
    """

    kl: IntervalNumbers
    ce_change: IntervalNumbers


class ConditionResult(Result):
    """Effects of one condition; every mapping is by task, with the row ``pooled`` over the held-out tasks.

    Attributes:
        name: For example ``rl|ablate|top50``.
        model: The host.
        edit: Text of the edit, or what is done instead.
        features: Name of the feature set.
        set_kind: Role of the condition.
        donor: Model whose features or residual are put in.
        draw: Number of a random draw.
        n_features: Features edited.
        accuracy: Share of right samples, with its Wilson interval.
        accuracy_delta: Change against the clean host, with its paired bootstrap interval.
        flip_rate_of_right: Share of the samples that the clean host has right and the edited host has wrong.
        flip_rate_of_wrong: Share of the samples that the clean host has wrong and the edited host has right.
        mcnemar_p: Exact McNemar p-value against the clean host.
        share_of_ceiling: Change as a share of the ceiling's; None where the ceiling is not measurable.
        readout: Read-out of the features; None where none is read.
        unparsed: Share of unparsed responses; None for a task without samples. It has no pooled row.
        collateral: None where it was not measured.
        relative_change: Largest ‖r' − r‖₂ / ‖r‖₂ over the prompts' tokens; None where it was not measured.
    """

    name: str
    model: str
    edit: str
    features: str
    set_kind: SetKind
    donor: str | None
    draw: int | None
    n_features: int
    accuracy: dict[str, IntervalNumbers]
    accuracy_delta: dict[str, IntervalNumbers]
    flip_rate_of_right: dict[str, IntervalNumbers]
    flip_rate_of_wrong: dict[str, IntervalNumbers]
    mcnemar_p: dict[str, float]
    share_of_ceiling: dict[str, float | None]
    readout: str | None
    unparsed: dict[str, float | None]
    collateral: Collateral | None
    relative_change: float | None


NamedRow = TypeVar("NamedRow", bound=Any)


def named_row(rows: "list[NamedRow]", name: str) -> NamedRow:
    """The record of one condition by its name.

    Raises:
        ConfigError: There is no such condition.
    """
    for row in rows:
        if row.name == name:
            return row
    raise ConfigError(f"There is no condition '{name}'; the results have {', '.join(row.name for row in rows)}.")
