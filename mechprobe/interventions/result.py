"""Typed records of what the ``intervene`` stage writes to ``results.json``; `result_rows` holds the rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import AliasChoices, Field

from mechprobe.display import columns_of
from mechprobe.environment import require
from mechprobe.errors import ConfigError
from mechprobe.files import dump_json, read_json
from mechprobe.interventions.readout_rows import ReadoutAgreement, ReadoutChoice
from mechprobe.interventions.result_rows import (
    ConditionResult,
    ConditionRow,
    EmptyLeftOut,
    HeadSizes,
    LeftOutVerdict,
    SmallestEffect,
    UnmeasuredSizes,
    Verdict,
)
from mechprobe.interventions.rival_rows import Comparison, Curve, OtherRanking
from mechprobe.results import OrEmpty, Result
from mechprobe.selection.controls import ControlMatch
from mechprobe.selection.never_active import NeverActive
from mechprobe.stage_folder import read_manifest
from mechprobe.types import POOLED

if TYPE_CHECKING:
    import pandas as pd

RESULTS_FILE = "results.json"

NamedRow = TypeVar("NamedRow", bound=ConditionRow)
StageType = TypeVar("StageType", bound="StageResult")


def json_value(record: Result) -> dict[str, Any]:
    """A record as JSON holds it: NaN is None, and fields that were never set are left out."""
    return json.loads(dump_json(record.model_dump(by_alias=True, exclude_unset=True)))


class StageResult(Result):
    """The result of a finished stage, in the file ``FILE`` of its folder."""

    FILE: ClassVar[str] = RESULTS_FILE

    @classmethod
    def load(cls: type[StageType], path: Path | str) -> StageType:
        """Read a finished stage.

        Args:
            path: The stage folder.

        Raises:
            ArtifactError: The stage is not finished, or its result file does not hold these records.
        """
        read_manifest(path)
        file = Path(path) / cls.FILE
        return cls.checked(read_json(file), file)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value, see `json_value`."""
        return json_value(self)


def named_row(rows: Sequence[NamedRow], name: str) -> NamedRow:
    """The record of one condition, for example ``rl|ablate|top50``; `ConfigError` where there is none."""
    for row in rows:
        if row.name == name:
            return row
    raise ConfigError(f"There is no condition '{name}'; the results have {', '.join(row.name for row in rows)}.")


class CollateralSource(Result):
    """The texts on which collateral was measured, with their predicted tokens and the sha256 of their token ids.

    ``related`` says whether they are prompts of the tasks; their collateral is then no sign of damage.
    """

    source: str
    related: bool = False
    n_texts: int
    n_tokens: int
    fingerprint: str


class RelativeChanges(Result):
    """The ``bound`` of relative changes, the prompt tokens that were read, and the names of the conditions above the bound."""

    bound: float
    n_tokens: int
    far: list[str]


class EditedSet(StageResult):
    """Which features are edited, at which site, and between which models.

    Attributes:
        site, pair: ``resid_post.<layer>``, and the base and the tuned model.
        rule_of_features, ranking: Specification of the set, for example ``top50``, and the ranking behind it.
        features: Feature indices, best first.
        silent: Features that never fire on the gained samples, see `mechprobe.selection.never_active`.
        readout_choice: How the read-out of transplants was chosen; absent where the settings name it, or nothing is transplanted.
    """

    site: str
    pair: tuple[str, str]
    rule_of_features: str
    ranking: str
    features: list[int]
    silent: NeverActive
    readout_choice: ReadoutChoice | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were set, so that a record made from them leaves the others out of its JSON value too."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class InterventionResults(EditedSet):
    """Everything in ``results.json``: effects of every condition, and the verdicts.

    Attributes:
        note: What a reader must know of the set, or empty.
        tasks: All tasks, in their order.
        held_out, trained: Tasks that post-training did not see, over which the pooled row is, and tasks that it saw.
        selecting, other_tasks: Tasks that selected the features, and tasks that did not.
        n_per_task, samples: Task → number of samples, and their ids in the order of ``outcomes.jsonl``, which has as many codes for
            each as it has responses.
        readouts_of_edits: Kind of edit → read-out; ``readout`` in JSON.
        positions: Where the edits act.
        control_match, transplant_match: How near the random sets of edits of one model, and those of transplants, come to the
            set; None without random sets.
        conditions: One record per condition that ran on every task.
        verdicts: One record per main edit and task, and one per main edit for the pooled row.
        verdict: The pooled verdicts in one sentence.
        smallest: Task, and ``pooled`` → the smallest effect that its test could have called clear of 0.
        rule: How verdicts are reached.
        readouts: Agreement of the two read-outs, one record per host.
        left_out: Verdicts on the sets chosen without a task.
        sizes: Host → how few features carry the ceiling.
        comparisons: The transplants of the set against their rivals, one record per host; empty without rivals.
        other_rankings: The transplants of the set beside those of the sets by other rankings, one record per host and ranking.
        curves: Shares of the ceiling by size, for features, principal components and random features.
        collateral: The texts behind the collateral; None where it was not measured.
        changes: How relative changes were measured.
        outcomes_from: The engine whose responses selected the features, in a sentence; empty for transformers. All conditions
            run with transformers.
    """

    note: str
    tasks: list[str]
    held_out: list[str]
    trained: list[str]
    selecting: list[str]
    other_tasks: list[str]
    n_per_task: dict[str, int]
    samples: dict[str, list[str]]
    readouts_of_edits: dict[str, str] = Field(
        validation_alias=AliasChoices("readout", "readouts_of_edits"), serialization_alias="readout"
    )
    positions: str
    control_match: OrEmpty[ControlMatch]
    transplant_match: OrEmpty[ControlMatch] = None
    conditions: list[ConditionResult]
    verdicts: list[Verdict]
    verdict: str
    smallest: dict[str, SmallestEffect]
    rule: str
    readouts: list[ReadoutAgreement]
    left_out: list[LeftOutVerdict | EmptyLeftOut]
    sizes: dict[str, HeadSizes | UnmeasuredSizes]
    comparisons: list[Comparison] = Field(default_factory=list)
    other_rankings: list[OtherRanking] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    collateral: CollateralSource | None
    changes: RelativeChanges
    outcomes_from: str = ""

    def _in_short(self) -> str:
        return f"{self.rule_of_features} at {self.site}, {len(self.conditions)} conditions; {self.verdict}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per verdict: edit, host, task, effect with its interval, share of the ceiling, controls and verdict."""
        plain = ("model", "edit", "features", "task", "n", "verdict", "ceiling", "random_mean", "n_random", "p_random")
        rows = [
            {name: getattr(row, name) for name in plain[:6]}
            | columns_of("effect", row.effect)
            | columns_of("share", row.share_interval)
            | {name: getattr(row, name) for name in (*plain[6:], "p_mcnemar_holm")}
            for row in self.verdicts
        ]
        return require("pandas", "The table of verdicts").DataFrame(rows)

    @property
    def pooled_verdicts(self) -> list[Verdict]:
        """The verdicts over all held-out tasks together."""
        return [row for row in self.verdicts if row.task == POOLED]

    def condition(self, name: str) -> ConditionResult:
        """The record of one condition, for example ``rl|ablate|top50``; `ConfigError` where there is none."""
        return named_row(self.conditions, name)
