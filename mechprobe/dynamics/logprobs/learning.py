"""The order in which classes of tokens are learned: the step at which a class reaches half of its final gain.

The curve of a class is the mean Δ against base of its tokens at base (0, step 0) and at every checkpoint. The half step is where the
curve, linear between checkpoints, first reaches half of its value at the last checkpoint (ours). It is given where the interval of
the final gain excludes 0. The bootstrap resamples prompts; draws whose final gain has the other sign are left out of the half step.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.checkpoints import ArmSteps
from mechprobe.dynamics.logprobs.result import LearningRow, OrderRow
from mechprobe.dynamics.logprobs.rows import SourceTable
from mechprobe.dynamics.logprobs.token_table import interval, ratio

ALL = "all"
"""The group of all tokens."""


def half_steps(
    steps: Float[ndarray, " checkpoint"], curves: Float[ndarray, "draw checkpoint"]
) -> Float[ndarray, " draw"]:
    """Where each curve, 0 at step 0, first reaches half of its last value; NaN where that is 0 or not finite.

    Example:
        >>> half_steps(np.array([10.0, 20.0]), np.array([[1.0, 4.0], [-4.0, -4.0]])).tolist()
        [13.333333333333334, 5.0]
    """
    axis = np.concatenate([[0.0], steps])
    values = np.concatenate([np.zeros((len(curves), 1)), curves], axis=1) * np.sign(curves[:, -1:])
    half = values[:, -1:] / 2
    good = np.isfinite(values).all(axis=1) & (half[:, 0] > 0)
    first = np.argmax(values >= np.where(good, half[:, 0], np.inf)[:, None], axis=1)
    first = np.where(good, first, 1)
    rows = np.arange(len(values))
    before, after = values[rows, first - 1], values[rows, first]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (half[:, 0] - before) / (after - before)
    found = axis[first - 1] + share * (axis[first] - axis[first - 1])
    return np.where(good, found, np.nan)


def learning_rows(
    source: SourceTable, arm: str, course: ArmSteps, deltas: Mapping[str, Float[ndarray, " token"]]
) -> Iterator[LearningRow | OrderRow]:
    """The half step of every class in one arm, and which of every two classes is first.

    Args:
        source: The traces.
        arm: Name of the arm.
        course: Its models, base first, and their steps.
        deltas: Model → Δ against base of every token.
    """
    steps, halves, drawn_halves = np.array(course.steps), {}, {}
    for group, (value, drawn, n) in _curves(source, course, deltas).items():
        gain = interval(value[-1], drawn[:, -1], source.prompts.n)
        told = gain.low > 0 or gain.high < 0
        half, drawn_half = half_steps(steps, value[None])[0], half_steps(steps, drawn)
        same = np.sign(drawn[:, -1]) == np.sign(value[-1])
        if told and np.isfinite(half):
            halves[group], drawn_halves[group] = half, np.where(same, drawn_half, np.nan)
        yield LearningRow(
            arm=arm, source=source.name, group=group, steps=course.steps, spaced_by=course.spaced_by, curve=tuple(value), gain=gain,
            half_step=interval(half, drawn_halves[group], source.prompts.n) if group in halves else None, n=n,
        )  # fmt: skip
    for first, second in combinations([group for group in halves if group != ALL], 2):
        apart = drawn_halves[first] - drawn_halves[second]
        known = apart[np.isfinite(apart)]
        share = float((known < 0).mean() + (known == 0).mean() / 2) if len(known) else float("nan")
        yield OrderRow(
            arm=arm, source=source.name, first=first, second=second,
            difference=interval(halves[first] - halves[second], apart, source.prompts.n), share_first=share,
        )  # fmt: skip


def _curves(
    source: SourceTable, course: ArmSteps, deltas: Mapping[str, ndarray]
) -> dict[str, tuple[ndarray, ndarray, int]]:
    """Group → mean Δ at every checkpoint, its bootstrap draws ``[draw checkpoint]``, and the number of tokens."""
    table, prompts, names = source.table, source.prompts, source.table.names
    ones = np.ones(len(table.ids))
    counts = prompts.sums(ones, table.classes, len(names))
    sums = [prompts.sums(deltas[model], table.classes, len(names)) for model in course.models[1:]]
    groups = {ALL: list(range(len(names)))} | {
        name: [index] for index, name in enumerate(names) if counts[:, index].sum()
    }
    found = {}
    for group, columns in groups.items():
        count = counts[:, columns].sum(axis=1)
        total = np.stack([part[:, columns].sum(axis=1) for part in sums], axis=1)
        drawn = ratio(source.weights @ total, (source.weights @ count)[:, None])
        found[group] = (total.sum(axis=0) / count.sum(), drawn, int(count.sum()))
    return found
