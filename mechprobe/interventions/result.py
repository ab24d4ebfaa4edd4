"""Typed records of what the ``intervene`` stage writes to ``results.json``.

Accuracies and effects are shares of samples, from 0 to 1. An effect on a verdict row counts in the claimed direction: a gain in
the base model, a loss in the tuned model.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field

from mechprobe.errors import ConfigError
from mechprobe.files import dump_json
from mechprobe.results import Number, Result
from mechprobe.stage_folder import read_manifest
from mechprobe.statistics import Interval
from mechprobe.types import POOLED

RESULTS_FILE = "results.json"

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


Measured = Annotated[Interval, BeforeValidator(_nan_for_null)]
"""``[value, low, high, n]`` in JSON, where null is NaN."""
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

    kl: Measured
    ce_change: Measured


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
    accuracy: dict[str, Measured]
    accuracy_delta: dict[str, Measured]
    flip_rate_of_right: dict[str, Measured]
    flip_rate_of_wrong: dict[str, Measured]
    mcnemar_p: dict[str, float]
    share_of_ceiling: dict[str, float | None]
    readout: str | None
    unparsed: dict[str, float | None]
    collateral: Collateral | None
    relative_change: float | None


class AgainstControls(Result):
    """An effect on one task beside the ceiling and the controls of the same edit.

    Attributes:
        ceiling: Effect of the whole-residual patch.
        ceiling_interval: The same with its interval.
        random_mean: Mean effect of the matched random sets; None without any.
        random_max: Largest of them.
        n_random: Their number.
        p_random: Randomization p-value against them; NaN without any.
        equal_norm_mean: Mean effect of the changes of equal norm in other directions.
        equal_norm_max: Largest of them.
        n_equal_norm: Their number.
        p_equal_norm: Randomization p-value against them.
        one_vector: Name of a one-vector baseline → its effect.
    """

    ceiling: Number
    ceiling_interval: Change
    random_mean: float | None
    random_max: float | None
    n_random: int
    p_random: Number
    equal_norm_mean: float | None
    equal_norm_max: float | None
    n_equal_norm: int
    p_equal_norm: Number
    one_vector: dict[str, Number]


class Verdict(AgainstControls):
    """The verdict on one main edit, on one task or on the pooled row.

    Attributes:
        model: The host.
        edit: Text of the edit.
        features: Name of the feature set.
        n_features: Features edited.
        readout: Read-out of the features; None where none is read.
        task: A task, or ``pooled``.
        effect: In the claimed direction.
        n: Samples.
        p_mcnemar: Exact McNemar p-value against the clean host.
        p_mcnemar_holm: The same, Holm-adjusted over the tasks of the edit; absent from the pooled row.
        p_random_holm: ``p_random``, Holm-adjusted likewise.
        verdict: One of the verdicts of `mechprobe.interventions.verdicts.rule`, or why there is none.
        sentence: The row in words.
    """

    model: str
    edit: str
    features: str
    n_features: int
    readout: str | None
    task: str
    effect: Change
    n: int
    p_mcnemar: Number
    p_mcnemar_holm: float | None = None
    p_random_holm: float | None = None
    verdict: str = ""
    sentence: str = ""


class LeftOutVerdict(Verdict):
    """The verdict on the set chosen without a task, on that task.

    Attributes:
        n_shared: Features that the full set has too.
        share: Effect as a share of the task's ceiling; None where that is not measurable.
        effect_with: Effect of the full set on the task.
        share_with: Its share of the ceiling.
        verdict_with: Its verdict.
    """

    n_shared: int
    share: float | None
    effect_with: Change
    share_with: float | None
    verdict_with: str


class EmptyLeftOut(Result):
    """A task without which the rule chooses no feature; fields as of `LeftOutVerdict`."""

    model: str
    edit: str
    features: str
    task: str
    n: int
    readout: str | None
    effect_with: Change
    share_with: float | None
    verdict_with: str
    effect: None
    share: None
    n_features: int
    n_shared: int
    verdict: str
    sentence: str


class SmallestHead(Result):
    """The smallest head of the ranking that reaches a goal, with a 95 % interval; None for "not reached by the largest"."""

    size: int | None
    low: int | None
    high: int | None


class HeadShare(NamedTuple):
    """Share of the pooled ceiling that the first ``size`` features of the ranking carry, with a 95 % interval."""

    size: int
    share: float
    low: float
    high: float


class HeadSizes(Result):
    """How few features of the ranking carry the ceiling in one host.

    Attributes:
        n: Samples.
        largest: Largest size measured.
        shares: Shares of the ceiling, by rising size.
        half: Smallest head that carries half of the ceiling; ``50%`` in JSON.
        nine_tenths: Smallest head that carries nine tenths; ``90%`` in JSON.
    """

    n: int
    largest: int
    shares: list[HeadShare]
    half: SmallestHead = Field(validation_alias=AliasChoices("50%", "half"), serialization_alias="50%")
    nine_tenths: SmallestHead = Field(validation_alias=AliasChoices("90%", "nine_tenths"), serialization_alias="90%")


class UnmeasuredSizes(Result):
    """A host whose ceiling is not measurable, so that no head has a share of it.

    Attributes:
        n: Samples.
        reason: Why, as a clause.
    """

    n: int
    reason: str


class ReadoutDifference(Result):
    """A transplant under two read-outs, on one task or on the pooled row.

    Attributes:
        task: A task, or ``pooled``.
        n: Samples.
        effect: Under the read-out of the verdict.
        effect_other: Under the other read-out.
        difference: ``effect`` minus ``effect_other`` on the same samples.
        disagree: Whether the two differ by the rule of `compare_readouts`.
    """

    task: str
    n: int
    effect: Change
    effect_other: Change
    difference: Change
    disagree: bool


class ReadoutAgreement(Result):
    """Whether the transplant of the selected set does the same under two read-outs in one host.

    Attributes:
        model: The host.
        edit: Text of the edit.
        features: Name of the feature set.
        readout: Read-out of the verdict.
        other: The other read-out.
        rows: One per held-out task, then the pooled row.
        sentence: Where the two disagree; empty where they agree.
    """

    model: str
    edit: str
    features: str
    readout: str
    other: str
    rows: list[ReadoutDifference]
    sentence: str


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
    silent: dict[str, Any]


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
        control_match: How near the random sets come to the set, see `mechprobe.selection.controls.match_quality`.
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
    control_match: dict[str, Any]
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
