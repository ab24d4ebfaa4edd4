"""The rule by which an experiment is *reproduced*, a *trend*, or *not reproduced*. It was written down before any run.

A claim of the paper is a number of the lab with an interval (`Value`), and a limit that the paper says it lies beyond. The claim is

- ``supported`` if the whole interval lies beyond the limit,
- ``opposed`` if the whole interval lies on the other side,
- ``open`` otherwise.

The claim that a skill dips and recovers is a count and has no interval. It is ``supported`` if all of two or more seeds show it,
``opposed`` if no seed does, and ``open`` otherwise. Few seeds bound such a share loosely: if it is 63 % of all seeds, three seeds
in a row lack it with a chance of 5 %. So ``opposed`` says less here than for an interval. With ``open`` for no seed the verdict
would be the same, because a count of 0 is not beyond its limit of 0.

The k claims of an experiment have intervals of 1 − 0.05/k (Bonferroni). An experiment is

- ``reproduced`` if all of its claims are supported,
- ``trend`` if none is opposed, at least one is supported, and every estimate lies beyond its limit,
- ``not`` otherwise, which readers see as *not reproduced*.

Claims that are marked ``ours`` have intervals but no part in k and in the verdict.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

import mechprobe as mp
from experiments.paper_c.design import ClaimConfig, Experiment
from experiments.paper_c.traces import GAME
from experiments.paper_c.training import Run, digits
from mechprobe.lab.recipe import TRAINED_SKILL
from mechprobe.results import Number, Result

Status = Literal["supported", "open", "opposed"]
Verdict = Literal["reproduced", "trend", "not"]
ALPHA = 0.05
RECOVERED = ("dip_recover_exceed", "dip_recover_to_base", "dip_partial")
Runs = Mapping[str, Mapping[str, Run]]
"""Arm → seed → run."""


class Value(NamedTuple):
    """An estimate with its interval, the number of seeds, and the number of items (0 where the seed's numbers are used as they are)."""

    value: Number
    low: Number
    high: Number
    seeds: int
    items: int


class Found(Result):
    """What the lab says to one claim.

    Attributes:
        text: The claim.
        style: Style of the traces.
        value: The measured number.
        level: Level of its interval.
        than, more: The limit, and whether the claim is that the value lies above it.
        status: See `experiments.paper_c.verdicts`.
        by_seed: The value of each seed.
        ours: Whether it has no part in the verdict.
    """

    text: str
    style: str
    value: Value
    level: float
    than: float
    more: bool
    status: Status
    by_seed: tuple[Number, ...]
    ours: bool = False


def other_tasks(run: Run) -> list[str]:
    """The skills that are not trained."""
    return [task for task in run.right if task not in (TRAINED_SKILL, GAME)]


def tasks_of(run: Run, on: str) -> list[str]:
    """The tasks that ``id``, ``ood`` or a name stands for."""
    return other_tasks(run) if on == "ood" else [TRAINED_SKILL if on == "id" else on]


def crossed_interval(change: Float[ndarray, "seed item"], groups: Sequence[int], level: float) -> Value:
    """Mean over seeds and items, with an interval for new seeds and new items.

    Every seed has the same items. With S seeds, item groups g of m_g items, G groups, and mean squares V, the half width is
    √(t²_{S−1} V_seed/S + t²_{m−1} max(0, Σ_g (V_item(g)/m_g − V_rest(g)/(S m_g))/G²)), with one t for each part as in Howe (1974);
    V_seed already holds the rest. One t for the sum, with the degrees of freedom of Satterthwaite (1946), covered 92 % instead of
    95 % where seeds decide. Items are drawn within each group (skill).

    Args:
        change: Score or difference of scores of every seed and item.
        groups: Number of items of each group, in order; all groups have the same weight.
        level: Coverage of the interval.
    """
    from scipy.special import stdtrit

    n_seeds, n_items = change.shape
    parts = np.split(change, np.cumsum(groups)[:-1], axis=1)
    means = np.mean([part.mean(axis=1) for part in parts], axis=0)
    value = float(means.mean())
    if n_seeds < 2:
        return Value(value, float("nan"), float("nan"), n_seeds, n_items)
    seeds = means.var(ddof=1) / n_seeds
    items = sum(part.mean(axis=0).var(ddof=1) / part.shape[1] - _rest(part) / part.size for part in parts)
    quantile = 1 - (1 - level) / 2
    squares = stdtrit(n_seeds - 1, quantile) ** 2 * seeds
    squares += stdtrit(n_items - 1, quantile) ** 2 * max(0.0, items / len(parts) ** 2)
    half = float(squares**0.5)
    return Value(value, value - half, value + half, n_seeds, n_items)


def _rest(part: Float[ndarray, "seed item"]) -> float:
    """Variance of what neither seed nor item explains."""
    left = part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean()
    return float((left**2).sum() / ((part.shape[0] - 1) * (part.shape[1] - 1)))


def seed_interval(values: Sequence[float], level: float) -> Value:
    """Mean over seeds with Student's t interval."""
    from scipy.special import stdtrit

    each = np.asarray(values, dtype=float)
    value, n = float(each.mean()), len(each)
    if n < 2:
        return Value(value, float("nan"), float("nan"), n, 0)
    half = float(stdtrit(n - 1, 1 - (1 - level) / 2)) * float(each.std(ddof=1)) / n**0.5
    return Value(value, value - half, value + half, n, 0)


def final_scores(run: Run, on: str, *, base: bool = False, gain: bool = False) -> Float[ndarray, " item"]:
    """Right or wrong of the last model, of base, or their difference."""
    return np.concatenate(
        [
            scores[-1].astype(float) - scores[0] if gain else scores[0 if base else -1].astype(float)
            for scores in (run.scores(task) for task in tasks_of(run, on))
        ]
    )


def measure(claim: ClaimConfig, style: str, runs: Runs, level: float) -> tuple[Value, tuple[float, ...]]:
    """The number of a claim with its interval, and that of each seed."""
    arm, against = claim.arms_of(style)
    seeds = [seed for seed in runs[arm] if against == "base" or seed in runs[against]]
    if claim.kind in ("score", "gain"):
        gain = claim.kind == "gain"
        rows = [
            final_scores(runs[arm][seed], claim.on, gain=gain)
            - (
                final_scores(runs[arm][seed], claim.on, base=True)
                if against == "base"
                else final_scores(runs[against][seed], claim.on, gain=gain)
            )
            for seed in seeds
        ]
        first = runs[arm][seeds[0]]
        groups = [len(first.right[task][0]) for task in tasks_of(first, claim.on)]
        change = np.stack(rows)
        by_seed = [float(np.mean([part.mean() for part in np.split(row, np.cumsum(groups)[:-1])])) for row in change]
        return crossed_interval(change, groups, level), tuple(by_seed)
    each = tuple(_course(claim, runs[arm][seed], None if against == "base" else runs[against][seed]) for seed in seeds)
    return seed_interval(each, level), each


def _course(claim: ClaimConfig, run: Run, other: Run | None) -> float:
    """The number of one seed for claims on the course of training."""
    if claim.kind == "dip":
        return float(any(label in RECOVERED for task, label in labels(run).items() if task in other_tasks(run)))
    lengths = run.mean_lengths(tasks_of(run, claim.on))
    if claim.kind == "length":
        assert other is not None, "a claim on length names two arms"
        return float(lengths[-1] / other.mean_lengths(tasks_of(other, claim.on))[-1] - 1)
    course = mp.dynamics.length_course(run.steps, lengths, np.zeros(len(run.steps)), 0.0)
    return (course.surge_ratio if claim.kind == "surge" else course.contraction_ratio) - 1


def labels(run: Run) -> dict[str, str]:
    """Class of the curve of every skill over training, adjusted over skills (`mechprobe dynamics`)."""
    return dict(_labels(run.steps, tuple(run.right.items())))


@lru_cache(maxsize=1024)
def _labels(steps: tuple[int, ...], right: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[tuple[str, str], ...]:
    config = mp.dynamics.DynamicsConfig(resamples=0, draws=1000)
    curves = {}
    for task, rows in right:
        scores = digits(rows).astype(float)
        curves[task] = mp.dynamics.dip_and_recovery(steps, scores[1:], scores[0], config=config)
    return tuple((task, each.label) for task, each in mp.dynamics.adjust_labels(curves).items())


def judge(value: Value, claim: ClaimConfig, by_seed: Sequence[float]) -> Status:
    """Whether a value supports its claim. A dip is a count: all seeds show it, none does, or some do."""
    if claim.kind == "dip":
        return "supported" if all(by_seed) and len(by_seed) > 1 else "open" if any(by_seed) else "opposed"
    sign = 1 if claim.more else -1
    low, high = sorted((sign * (value.low - claim.than), sign * (value.high - claim.than)))
    if not np.isfinite(low):
        return "open"
    return "supported" if low > 0 else "opposed" if high < 0 else "open"


def check(design: Experiment, style: str, runs: Runs) -> list[Found]:
    """All claims of one style."""
    claims = design.claims_of(style)
    k = max(1, sum(not claim.ours for claim in claims))
    found = []
    for claim in claims:
        level = 1 - ALPHA / (1 if claim.ours else k)
        value, by_seed = measure(claim, style, runs, level)
        found.append(
            Found(
                text=claim.text,
                style=style,
                value=value,
                level=level,
                than=claim.than,
                more=claim.more,
                status=judge(value, claim, by_seed),
                by_seed=by_seed,
                ours=claim.ours,
            )
        )
    return found


def verdict(found: Sequence[Found]) -> Verdict:
    """The verdict of an experiment from its claims."""
    counted = [each for each in found if not each.ours]
    if all(each.status == "supported" for each in counted):
        return "reproduced"
    beyond = all((each.value[0] > each.than) == each.more and each.value[0] != each.than for each in counted)
    statuses = {each.status for each in counted}
    return "trend" if "opposed" not in statuses and "supported" in statuses and beyond else "not"
