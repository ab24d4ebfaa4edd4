"""Typed records of the rows in ``results.json``: conditions, verdicts and smallest sets.

Accuracies and effects are shares of samples, from 0 to 1. Effects count in the claimed direction: a gain in the base model, a
loss in the tuned model.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AliasChoices, BeforeValidator, Field

from mechprobe.results import IntervalNumbers, Number, Result

SetKind = Literal[
    "clean", "selected", "random", "rescaled", "recon", "opposite", "shuffled", "shifted", "ceiling", "baseline", "size",
    "random_size", "dose", "compare", "left_out", "rival", "complement",
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


class ChangeSize(NamedTuple):
    """How far an edit moves the residual: the largest ‖r' − r‖₂ / ‖r‖₂ over tokens, and the mean ‖r' − r‖₂."""

    largest: float
    norm: float


class Collateral(Result):
    """What an edit does to the host's predictions on unrelated text, in nats per predicted token.

    ``kl`` is KL(clean ‖ edited), ``ce_change`` the cross-entropy of the edited host minus that of the clean host.
    """

    kl: IntervalNumbers
    ce_change: IntervalNumbers


class EditedRow(Result):
    """Which edit of which features a row is about.

    Attributes:
        model: The host.
        edit: Text of the edit, or what is done instead.
        features, n_features: Name of the feature set, and the number of features edited.
        readout: Read-out of the features; None where none is read.
    """

    model: str
    edit: str
    features: str
    n_features: int
    readout: str | None


class ConditionRow(EditedRow):
    """What every record of one condition holds, whatever was measured under it.

    Attributes:
        name: For example ``rl|ablate|top50``.
        set_kind: Role of the condition.
        draw: Number of a random draw.
        relative_change: Largest ‖r' − r‖₂ / ‖r‖₂ over the tokens that were read; None where it was not measured.
        change_norm: Mean ‖r' − r‖₂ over these tokens, in units of the residual; None where it was not measured.
        rank: Independent directions of the change of a rival; absent elsewhere, and where ranks do not apply.
    """

    name: str
    set_kind: SetKind
    draw: int | None
    relative_change: float | None
    change_norm: float | None = None
    rank: int | None = None


class TaskEffects(Result):
    """One condition against the clean host; every mapping is by task.

    Attributes:
        accuracy: Share of right responses, with its interval (`mechprobe.statistics.share_interval`) and the number of samples.
        accuracy_delta: Change against the clean host, with its interval (`mechprobe.statistics.paired_change`).
        flip_rate_of_right, flip_rate_of_wrong: Share of the clean host's right responses that the edited host has wrong, and of
            its wrong responses that the edited host has right; sampled responses are paired by draw.
        mcnemar_p: Exact McNemar p-value against the clean host; with several responses to each sample, that of the sign-flip
            test over samples, which extends it (`mechprobe.statistics.sign_flip_exact`).
        n_draws: Task → responses to each sample; absent under greedy decoding.
    """

    accuracy: dict[str, IntervalNumbers]
    accuracy_delta: dict[str, IntervalNumbers]
    flip_rate_of_right: dict[str, IntervalNumbers]
    flip_rate_of_wrong: dict[str, IntervalNumbers]
    mcnemar_p: dict[str, float]
    n_draws: dict[str, int] = Field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """The fields that were set, so that a record made from them leaves the others out of its JSON value too."""
        return {name: getattr(self, name) for name in TaskEffects.model_fields if name in self.model_fields_set}


class ConditionResult(ConditionRow, TaskEffects):
    """Effects of one condition; every mapping is by task, with the row ``pooled`` over the held-out tasks.

    Attributes:
        donor: Model whose features or residual are put in.
        share_of_ceiling: Change as a share of the ceiling's; None where the ceiling is not measurable.
        unparsed: Share of responses that ended by themselves without an answer that the scorer finds; None for a task without
            samples. It has no pooled row.
        cut: Share of responses that were cut at the limit or are unfinished, and therefore not scored; None for a task without
            samples.
        collateral: None where it was not measured.
    """

    donor: str | None
    share_of_ceiling: dict[str, float | None]
    unparsed: dict[str, float | None]
    cut: dict[str, float | None] = Field(default_factory=dict)
    collateral: Collateral | None


class AgainstControls(Result):
    """An effect on one task beside the ceiling and the controls of the same edit.

    Attributes:
        ceiling, ceiling_interval: Effect of the whole-residual patch, without and with its interval.
        random_mean, random_max, n_random: Mean and largest effect of the matched random sets (None without any), and their
            number.
        n_random_effective: Independent sets that they are worth, see `mechprobe.selection.controls.effective_draws`.
        p_random: Randomization p-value against them; NaN without any.
        rescaled_mean, rescaled_max, n_rescaled, p_rescaled: The same for random sets whose change is scaled to the norm of the
            selected set's on every token.
        equal_norm_mean, equal_norm_max, n_equal_norm, p_equal_norm: The same for the changes of equal norm along other
            features' decoder directions.
        shifted_mean, shifted_max, n_shifted, p_shifted: The same for those along other features' shifts between the models;
            only a transplant has them.
        change_norm, random_change_norm: Mean norm of the change that the selected set makes on a token, and the mean over the
            random sets of the same; None where they were not measured.
        one_vector: Name of a one-vector baseline → its effect.
    """

    ceiling: Number
    ceiling_interval: Change
    random_mean: float | None
    random_max: float | None
    n_random: int
    n_random_effective: float | None = None
    p_random: Number
    rescaled_mean: float | None = None
    rescaled_max: float | None = None
    n_rescaled: int = 0
    p_rescaled: Number = float("nan")
    equal_norm_mean: float | None
    equal_norm_max: float | None
    n_equal_norm: int
    p_equal_norm: Number
    shifted_mean: float | None = None
    shifted_max: float | None = None
    n_shifted: int = 0
    p_shifted: Number = float("nan")
    change_norm: float | None = None
    random_change_norm: float | None = None
    one_vector: dict[str, Number]


class PairedComparison(Result):
    """A main edit on one task beside the ceiling and both clean models, on the same samples.

    Attributes:
        share_interval: Effect as a share of the ceiling, with its interval (`mechprobe.statistics.paired_ratio`).
        beyond_ceiling: Effect minus that of the ceiling, in the claimed direction.
        broken_excess: Share of unparsed, cut and unfinished responses minus that of a clean model: the smaller difference.
        below_clean: Accuracy of a clean model minus that under the edit: the smaller difference.
    """

    share_interval: Change
    beyond_ceiling: Change
    broken_excess: Change
    below_clean: Change


class Verdict(EditedRow, AgainstControls, PairedComparison):
    """The verdict on one main edit, on one task or on the pooled row.

    Attributes:
        task: A task, or ``pooled``.
        n: Samples.
        effect: In the claimed direction.
        p_mcnemar: Exact p-value against the clean host, see ``mcnemar_p`` of `TaskEffects`.
        n_draws: Responses to each sample; absent if 1.
        p_mcnemar_holm, p_random_holm, p_equal_norm_holm: ``p_mcnemar``, the larger of ``p_random`` and ``p_rescaled``, and the
            larger of ``p_equal_norm`` and ``p_shifted``, Holm-adjusted over ``n_tests`` rows: the tasks of the edit, or the main
            edits for the pooled row.
        damage: What makes the verdict *damage*, as a clause; else empty.
        verdict: One of the verdicts of `mechprobe.interventions.verdicts.rule`, or why there is none.
        sentence: The row in words.
    """

    task: str
    n: int
    effect: Change
    p_mcnemar: Number
    n_draws: int = 1
    n_tests: int = 1
    p_mcnemar_holm: Number = float("nan")
    p_random_holm: Number = float("nan")
    p_equal_norm_holm: Number = float("nan")
    damage: str = ""
    verdict: str = ""
    sentence: str = ""


HARDLY_INDEPENDENT = 0.5
"""Jaccard index with the full set from which a set that was chosen without a task is called hardly independent of it."""


class LeftOutVerdict(Verdict):
    """The verdict on the set chosen without a task, on that task.

    The full set shares ``n_shared`` features with it, and ``jaccard`` is the Jaccard index of the two. ``share`` is its effect as
    a share of the task's ceiling; None where that is not measurable. ``effect_with``, ``share_with`` and ``verdict_with`` are those
    of the full set on the task.
    """

    n_shared: int
    jaccard: float
    share: float | None
    effect_with: Change
    share_with: float | None
    verdict_with: str


class EmptyLeftOut(EditedRow):
    """A task without which the rule chooses no feature; fields as of `LeftOutVerdict`."""

    task: str
    n: int
    effect: None
    verdict: str
    sentence: str
    n_shared: int
    share: None
    effect_with: Change
    share_with: float | None
    verdict_with: str


class SmallestEffect(Result):
    """The smallest effect on one row that its paired test can call clear of 0.

    Attributes:
        n, n_draws: Samples, and responses to each.
        n_tests: Tests over which p is Holm-adjusted; the smallest of them has to pass.
        flips: Samples that must change, all one way; None where even all ``n`` are too few.
        effect: The change of accuracy that this is; NaN where there is none.
    """

    n: int
    n_draws: int
    n_tests: int
    flips: int | None
    effect: Number


class SmallestHead(Result):
    """The smallest head of the ranking that reaches a goal; None for "not reached by the largest".

    ``low`` is the first head whose share the interval does not put below the goal, ``high`` the first whose interval lies above.
    """

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
    """How few features of the ranking carry the ceiling in one host with ``n`` samples.

    The shares of the ceiling are by rising size. ``half`` and ``nine_tenths`` are the smallest heads that carry these shares;
    ``50%`` and ``90%`` in JSON.
    """

    n: int
    largest: int
    shares: list[HeadShare]
    half: SmallestHead = Field(validation_alias=AliasChoices("50%", "half"), serialization_alias="50%")
    nine_tenths: SmallestHead = Field(validation_alias=AliasChoices("90%", "nine_tenths"), serialization_alias="90%")


class UnmeasuredSizes(Result):
    """A host with ``n`` samples whose ceiling is not measurable, so that no head has a share of it; ``reason`` is a clause."""

    n: int
    reason: str
