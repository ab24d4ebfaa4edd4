"""The order in which classes of tokens are learned: half of the final gain of every class, and which class comes first.

The curve of a class is the mean Δ against base of its tokens at base (0, step 0) and at every checkpoint. Half of its last value and the
order of two classes are those of `mechprobe.dynamics.order`: ends of an interval are checkpoints, and no order is told between two
classes that pass half between the same two checkpoints. The bootstrap resamples prompts, the same ones for all classes.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.checkpoints import ArmSteps
from mechprobe.dynamics.logprobs.result import LearningRow, OrderRow
from mechprobe.dynamics.logprobs.rows import SourceTable
from mechprobe.dynamics.logprobs.token_table import interval, ratio
from mechprobe.dynamics.order import Course, half_change, moved_first

ALL = "all"
"""The group of all tokens."""
FEW_PROMPTS = "fewer than two prompts hold such tokens"
HALF_RULE = (
    "The step at which half of the final Δ is reached lies between two checkpoints, the ends of its interval. Its value is "
    "interpolated on an axis that is linear up to the first checkpoint and logarithmic after it. Pairs of classes are adjusted by Holm."
)


def learning_rows(
    source: SourceTable, arm: str, course: ArmSteps, deltas: Mapping[str, Float[ndarray, " token"]]
) -> Iterator[LearningRow | OrderRow]:
    """The half step of every class in one arm, and which of every two classes is shown to be first.

    Args:
        source: The traces.
        arm: Name of the arm.
        course: Its models, base first, and their steps.
        deltas: Model → Δ against base of every token.
    """
    ranked = list[Course]()
    for group, (value, drawn, n, n_prompts) in _curves(source, course, deltas).items():
        gain, half, untold = interval(value[-1], drawn[:, -1], n_prompts), None, FEW_PROMPTS
        if n_prompts > 1:
            own = Course(
                group, np.array(course.steps), np.append(0.0, value), np.insert(drawn, 0, 0.0, axis=1), n_prompts
            )
            found = half_change(own)
            gain, half, untold = found.change, None if found.untold else found.step, found.untold
            ranked += [own] if group != ALL and not untold else []
        yield LearningRow(
            arm=arm, source=source.name, group=group, steps=course.steps, spaced_by=course.spaced_by, curve=tuple(value), gain=gain,
            half_step=half, untold=untold, n=n,
        )  # fmt: skip
    for pair in moved_first(ranked).pairs:
        yield OrderRow(arm=arm, source=source.name, **{name: getattr(pair, name) for name in type(pair).model_fields})


def _curves(
    source: SourceTable, course: ArmSteps, deltas: Mapping[str, ndarray]
) -> dict[str, tuple[ndarray, ndarray, int, int]]:
    """Group → mean Δ at every checkpoint, its bootstrap draws ``[draw checkpoint]``, tokens, and prompts with such a token."""
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
        found[group] = (total.sum(axis=0) / count.sum(), drawn, int(count.sum()), int((count > 0).sum()))
    return found
