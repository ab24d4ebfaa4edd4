"""Dip-and-recovery: whether a score falls below base during training and comes back (arXiv 2604.06628; the tests are ours)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.dip_statistic import Noise
from mechprobe.dynamics.dip_test import CurveTester
from mechprobe.dynamics.evidence import Evidence, ItemScores
from mechprobe.dynamics.labels import CurveTests, adjusted, classify, critical, shape
from mechprobe.dynamics.result import CutCourse, DipResult
from mechprobe.dynamics.scores import Scores, check_steps, read_scores
from mechprobe.score_intervals import Z
from mechprobe.statistics import Interval


def dip_and_recovery(  # noqa: PLR0913 - the promised entry point; all but four are keyword options
    steps: Iterable[float | int],
    scores: Sequence[Any] | ArrayLike,
    base_score: float | int | Sequence[Any] | ArrayLike,
    n: int | Sequence[int] | ArrayLike | None = None,
    *,
    responses: int = 1,
    se: float | int | Sequence[Any] | ArrayLike | None = None,
    cut: Sequence[Any] | ArrayLike | None = None,
    higher_is_better: bool = True,
    config: DynamicsConfig | None = None,
) -> DipResult:
    """Class and numbers of one curve of scores over checkpoints.

    The scores are of one of three kinds. *Published*: ``scores`` ``[checkpoint]`` and ``base_score`` as shares or percent, with
    ``n``. They are percent if any is above 1, or as ``config.scale`` says. *Items*: right (1) or wrong (0) as ``[checkpoint, item]`` and
    ``[item]``, or with a last axis of responses; the items are the same for all. *With errors*: numbers of any kind with ``se``.

    Args:
        steps: Step of each checkpoint, rising. Only their order enters the tests.
        scores: Scores of the checkpoints.
        base_score: Score of the base model.
        n: Number of problems behind every published score, or behind each, base first.
        responses: Responses to each problem, the k of avg@k.
        se: Standard error of every score, or of each, base first, instead of ``n``.
        cut: Share of cut responses, base first, in the unit of the scores; for items, whether each response was cut, in the shape
            of the scores with base as the first row. A cut response counts as wrong.
        higher_is_better: False for scores such as the share of attacks that succeed: a dip is then a rise above base, and a gain a fall.
        config: Level, draws and seed; the defaults if None.

    Returns:
        The result, in the unit of the scores.

    Raises:
        InputError: The scores cannot be used.

    Example:
        >>> found = dip_and_recovery([10, 20, 40, 80], [46.3, 33.0, 40.4, 49.4], 49.2, n=541)
        >>> found.label, found.trough_step, round(found.depth, 1)
        ('dip_recover_to_base', 20.0, 16.2)
    """
    config = config or DynamicsConfig()
    read = read_scores(
        scores,
        base_score,
        n=n,
        responses=responses,
        se=se,
        cut=cut,
        scale=config.scale,
        higher_is_better=higher_is_better,
    )
    return classify_curve(steps, read, config)


def classify_curve(steps: Iterable[float | int], read: Scores, config: DynamicsConfig) -> DipResult:
    """Class and numbers of one curve whose scores are read; arguments and errors are those of `dip_and_recovery`."""
    found = check_steps(steps, len(read.evidence.curve) - 1)
    tester = _tester(read.evidence, config)
    tests = _tests(read.evidence.curve[None], tester)[0]
    result = _result(found, read, tests, config.alpha)
    return result.model_copy(
        update={"resampled_labels": _resampled(read.evidence, tester, config), "cut": _cut(read, config)}
    )


def adjust_labels(results: Mapping[str, DipResult]) -> dict[str, DipResult]:
    """The results with p-values adjusted over all curves (Holm 1979) and the labels that follow.

    Dips, gains and late declines are one family of tests each.
    """
    tests = adjusted([each.tests for each in results.values()])
    return {
        name: each.model_copy(
            update={"tests": new, "label": classify(new, each.alpha), "adjusted_over": len(results)}
            | {"recovery_step": each.recovery_step if new.dip_p <= each.alpha else None}
        )
        for (name, each), new in zip(results.items(), tests, strict=True)
    }


def _tester(evidence: Evidence, config: DynamicsConfig) -> CurveTester:
    permuted = evidence.permuted(np.random.default_rng(config.seed), config.draws)
    return CurveTester.of(evidence.noise, draws=config.draws, seed=config.seed, permuted=permuted)


def _tests(curves: Float[ndarray, "curve score"], tester: CurveTester) -> list[CurveTests]:
    p = zip(tester.dips(curves), tester.gains(curves), tester.late_declines(curves), strict=True)
    return [
        CurveTests.model_validate({"dip_p": dip, "gain_p": gain, "late_p": late} | shape(curve, tester.noise))
        for curve, (dip, gain, late) in zip(curves, p, strict=True)
    ]


def _resampled(evidence: Evidence, tester: CurveTester, config: DynamicsConfig) -> dict[str, int]:
    """Labels of resampled curves, each with the tests of the curve at hand."""
    if not config.resamples:
        return {}
    curves = evidence.resampled(np.random.default_rng([config.seed, 1]), config.resamples)
    labels = Counter(classify(tests, config.alpha) for tests in _tests(curves, tester))
    return dict(labels.most_common())


def _result(steps: tuple[float, ...], read: Scores, tests: CurveTests, alpha: float) -> DipResult:
    scale, noise, curve = read.scale, read.evidence.noise, read.evidence.curve * read.scale
    base, values, errors = float(curve[0]), curve[1:], noise.differences * scale
    trough, peak = int(values.argmin()), int(values.argmax())
    depth, gain = base - float(values[trough]), float(values[-1]) - base
    n = read.evidence.n or 0
    given = read.given(read.evidence.curve)
    return DipResult(
        steps=steps,
        scores=tuple(given[1:].tolist()),
        base_score=float(given[0]),
        higher_is_better=not read.turned,
        unit=read.unit,
        n=read.evidence.n,
        responses=read.responses,
        items=isinstance(read.evidence, ItemScores),
        errors=tuple((noise.all * scale).tolist()),
        alpha=alpha,
        label=classify(tests, alpha),
        depth=depth,
        depth_interval=Interval(depth, depth - Z * errors[trough], depth + Z * errors[trough], n),
        trough_step=steps[trough],
        recovery_step=_recovery(steps, curve, noise, scale, alpha) if tests.dip_p <= alpha else None,
        final_gain=gain,
        final_gain_interval=Interval(gain, gain - Z * errors[-1], gain + Z * errors[-1], n),
        peak_gain=float(values[peak]) - base,
        peak_step=steps[peak],
        recovered_share=(float(values[-1]) - float(values[trough])) / depth if depth > 0 else float("nan"),
        late_decline=float(values[peak] - values[-1]),
        tests=tests,
    )


def _recovery(
    steps: tuple[float, ...], curve: Float[ndarray, " score"], noise: Noise, scale: float, alpha: float
) -> float | None:
    """First step after the trough whose score is not below base by a one-sided test."""
    base, values = curve[0], curve[1:]
    enough = values >= base - critical(alpha) * noise.differences * scale
    later = [step for place, step in enumerate(steps) if place > values.argmin() and enough[place]]
    return later[0] if later else None


def _cut(read: Scores, config: DynamicsConfig) -> CutCourse | None:
    """What cut responses have to do with the curve; None where they are unknown."""
    from scipy.special import ndtr

    if read.ended is None or read.cut is None:
        return None
    ended, cut = read.ended.curve, read.cut.curve
    trough = int(read.evidence.curve[1:].argmin())
    rise = (cut[1 + trough] - cut[0]) / read.cut.noise.differences[trough]
    return CutCourse(
        share=tuple(cut.tolist()),
        ended_scores=tuple(read.given(ended).tolist()),
        ended_depth=float(ended[0] - ended[1:].min()) * read.scale,
        ended_dip_p=float(_tester(read.ended, config).dips(ended[None])[0]),
        cut_rise_p=float(ndtr(-rise)),
    )
