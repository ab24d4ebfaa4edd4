"""Typed records of what the ``harness`` stage writes to ``results.json``."""

from pathlib import Path
from typing import Any

from mechprobe.interventions.condition_result import SetKind, json_value, named_row
from mechprobe.interventions.result import RESULTS_FILE, EditedSet, RelativeChanges
from mechprobe.results import IntervalNumbers, Result
from mechprobe.stage_folder import read_manifest


class MetricCell(Result):
    """One metric of the harness on one task, under one condition.

    Attributes:
        value: The metric; None where the harness gives no finite number.
        stderr: Its standard error; None where the harness gives none.
        n: Documents; None for a group of tasks.
        change: Change against the clean host. The paired bootstrap interval is NaN unless the metric is a mean over documents.
            None for clean rows, and where one of the two values is missing.
        random_mean: Mean change of the random sets under the same edit, where random sets ran.
        n_random: Their number.
        p_random: Randomization p-value against them, where the harness says which direction is better.
    """

    value: float | None
    stderr: float | None
    n: int | None
    change: IntervalNumbers | None
    random_mean: float | None = None
    n_random: int | None = None
    p_random: float | None = None


class HarnessCondition(Result):
    """The harness' metrics under one condition.

    Attributes:
        name: For example ``rl|ablate|top50``.
        model: The host.
        edit: Text of the edit, or ``clean``.
        features: Name of the feature set.
        set_kind: ``clean``, ``selected`` or ``random``.
        draw: Number of a random set.
        n_features: Features edited.
        readout: Read-out of the features; None where none is read.
        relative_change: Largest ‖r' − r‖₂ / ‖r‖₂ over the tokens of the first documents; None where it was not measured.
        metrics: Task → ``metric,filter`` → cell.
    """

    name: str
    model: str
    edit: str
    features: str
    set_kind: SetKind
    draw: int | None
    n_features: int
    readout: str | None
    relative_change: float | None
    metrics: dict[str, dict[str, MetricCell]]


class HarnessResults(EditedSet):
    """Everything in ``results.json`` of a ``harness`` stage.

    Attributes:
        note: What the numbers are and are not.
        lm_eval: Version of lm-evaluation-harness.
        tasks: Tasks and groups, sorted.
        n: Task → documents.
        higher_is_better: Task → metric → whether higher is better; None where the harness does not say.
        conditions: One record per condition.
        changes: How relative changes were measured.
    """

    note: str
    lm_eval: str
    tasks: list[str]
    n: dict[str, int]
    higher_is_better: dict[str, dict[str, bool | None]]
    conditions: list[HarnessCondition]
    changes: RelativeChanges

    @classmethod
    def load(cls, path: Path | str) -> "HarnessResults":
        """Read a finished ``harness`` stage.

        Args:
            path: The stage folder.

        Raises:
            ArtifactError: The stage is not finished, or its ``results.json`` does not hold these records.
        """
        read_manifest(path)
        return super().load(Path(path) / RESULTS_FILE)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value: NaN is None, and fields that were never set are left out."""
        return json_value(self)

    def condition(self, name: str) -> HarnessCondition:
        """The record of one condition, for example ``rl|ablate|top50``.

        Raises:
            ConfigError: There is no such condition.
        """
        return named_row(self.conditions, name)
