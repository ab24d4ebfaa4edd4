"""Typed records of what the ``intervene`` stage writes to ``results.json``.

`mechprobe.interventions.condition_result` and `mechprobe.interventions.verdict_result` hold the rows.
"""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from mechprobe.interventions.condition_result import ConditionResult, json_value, named_row
from mechprobe.interventions.verdict_result import (
    EmptyLeftOut,
    HeadSizes,
    LeftOutVerdict,
    ReadoutAgreement,
    UnmeasuredSizes,
    Verdict,
)
from mechprobe.results import OrEmpty, Result
from mechprobe.selection.controls import ControlMatch
from mechprobe.selection.never_active import NeverActive
from mechprobe.stage_folder import read_manifest
from mechprobe.types import POOLED

RESULTS_FILE = "results.json"


class CollateralSource(Result):
    """The texts on which collateral was measured.

    Attributes:
        source: Where they come from.
        n_texts: Their number.
        n_tokens: Predicted tokens.
        fingerprint: sha256 of the token ids.
    """

    source: str
    n_texts: int
    n_tokens: int
    fingerprint: str


class RelativeChanges(Result):
    """How the relative changes of the edits were measured.

    Attributes:
        bound: Relative change above which an edit is named.
        n_tokens: Prompt tokens that were read.
        far: Names of the conditions above the bound.
    """

    bound: float
    n_tokens: int
    far: list[str]


class EditedSet(Result):
    """Which features are edited, at which site, and between which models.

    Attributes:
        site: ``resid_post.<layer>``.
        pair: Base and tuned model.
        rule_of_features: Specification of the set, for example ``top50``.
        ranking: Ranking behind it.
        features: Feature indices, best first.
        silent: Features that never fire on the gained samples, see `mechprobe.selection.never_active`.
    """

    site: str
    pair: tuple[str, str]
    rule_of_features: str
    ranking: str
    features: list[int]
    silent: NeverActive


class InterventionResults(EditedSet):
    """Everything in ``results.json``: effects of every condition, and the verdicts.

    Attributes:
        note: What a reader must know of the set, or empty.
        tasks: All tasks, in their order.
        held_out: Tasks that post-training did not see; the pooled row is over them.
        trained: Tasks that post-training saw.
        selecting: Tasks that selected the features.
        other_tasks: Tasks that did not.
        n_per_task: Samples of each task.
        samples: Task → sample ids, in the order of ``outcomes.jsonl``.
        readouts_of_edits: Kind of edit → read-out; ``readout`` in JSON.
        positions: Where the edits act.
        control_match: How near the random sets come to the set, see `mechprobe.selection.controls`; None without random sets.
        conditions: One record per condition that ran on every task.
        verdicts: One record per main edit and task, and one per main edit for the pooled row.
        verdict: The pooled verdicts in one sentence.
        rule: How verdicts are reached.
        readouts: Agreement of the two read-outs, one record per host.
        left_out: Verdicts on the sets chosen without a task.
        sizes: Host → how few features carry the ceiling.
        collateral: The texts behind the collateral; None where it was not measured.
        changes: How relative changes were measured.
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
    conditions: list[ConditionResult]
    verdicts: list[Verdict]
    verdict: str
    rule: str
    readouts: list[ReadoutAgreement]
    left_out: list[LeftOutVerdict | EmptyLeftOut]
    sizes: dict[str, HeadSizes | UnmeasuredSizes]
    collateral: CollateralSource | None
    changes: RelativeChanges

    @classmethod
    def load(cls, path: Path | str) -> "InterventionResults":
        """Read a finished ``intervene`` stage.

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

    @property
    def pooled_verdicts(self) -> list[Verdict]:
        """The verdicts over all held-out tasks together."""
        return [row for row in self.verdicts if row.task == POOLED]

    def condition(self, name: str) -> ConditionResult:
        """The record of one condition, for example ``rl|ablate|top50``.

        Raises:
            ConfigError: There is no such condition.
        """
        return named_row(self.conditions, name)
