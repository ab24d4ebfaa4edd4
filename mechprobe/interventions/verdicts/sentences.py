"""Verdicts and read-out disagreements in words. Accuracies are given in points, hundredths of the samples."""

from collections.abc import Sequence

from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdict_result import ReadoutAgreement, Verdict
from mechprobe.types import POOLED

_UNTRAINED = "the untrained tasks"


def verdict_sentence(row: Verdict, base: str) -> str:
    """One effect in words, with its controls and the verdict; ``base`` is the model in which a gain is claimed."""
    direction = "gives" if row.model == base else "takes"
    where = _UNTRAINED if row.task == POOLED else row.task
    parts = [
        f"n = {row.n}",
        *([f"{row.readout} read-out"] if row.readout else []),
        f"whole residual {_points(row.ceiling)}",
    ]
    if row.random_mean is not None:
        mean = _points(row.random_mean)
        parts.append(f"{row.n_random} matched random sets {mean} on average, p = {row.p_random:.3f}")
    if row.equal_norm_max is not None:
        largest = _points(row.equal_norm_max)
        parts.append(f"{row.n_equal_norm} changes of equal norm at most {largest}, p = {row.p_equal_norm:.3f}")
    if row.p_mcnemar_holm is not None:
        parts.append(f"Holm-adjusted McNemar p = {row.p_mcnemar_holm:.2g}")
    parts += [f"{name} as one vector {_points(effect)}" for name, effect in row.one_vector.items()]
    effect = points_with_interval(row.effect)
    return (
        f"{row.edit} of {row.features} in {row.model} {direction} {effect} points on {where} ({'; '.join(parts)}): "
        f"{row.verdict}."
    )


def headline(rows: Sequence[Verdict], config: InterveneConfig) -> str:
    """The pooled verdicts in one sentence."""
    pooled = [row for row in rows if row.task == POOLED]
    parts = [f"{row.edit} in {row.model}: {row.verdict}" for row in pooled]
    features = pooled[0].features if pooled else config.features or "selected"
    return f"Do the features {features} cause the change from {config.base} to {config.tuned}? {'; '.join(parts)}."


def disagreement_sentence(found: ReadoutAgreement, base: str) -> str:
    """Where two read-outs disagree, pooled row first; empty where they agree."""
    apart = [row for row in found.rows if row.disagree]
    if not apart:
        return ""
    verb = "gives" if found.model == base else "takes"
    effects = "; ".join(
        f"{_UNTRAINED if row.task == POOLED else row.task} {points_with_interval(row.effect)} against "
        f"{points_with_interval(row.effect_other)}, n = {row.n}"
        for row in apart[::-1]
    )
    return (
        f"The {found.readout} and {found.other} read-outs disagree on what {found.edit} of {found.features} in {found.model} "
        f"{verb} (points under {found.readout} against {found.other}): {effects}. The verdict uses the {found.readout} read-out; "
        f"set intervene.transplant_readout={found.other} to judge the other."
    )


def points_with_interval(effect: Sequence[float | int]) -> str:
    """``47 [40, 54]`` for ``[value, low, high]`` in accuracy."""
    value, low, high = (_points(part) for part in effect)
    return f"{value} [{low}, {high}]"


def _points(accuracy: float) -> int | str:
    """Accuracy in whole points; a dash for NaN."""
    return round(100 * accuracy) if accuracy == accuracy else "–"
