"""Typed records of verdicts, smallest sets and read-out agreement.

Effects count in the claimed direction: a gain in the base model, a loss in the tuned model.
"""

from typing import NamedTuple

from pydantic import AliasChoices, Field

from mechprobe.interventions.condition_result import Change
from mechprobe.results import Number, Result


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
