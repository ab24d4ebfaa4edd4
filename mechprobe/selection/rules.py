"""Specifications of the features that an intervention edits, such as ``top50`` or ``ids:1,2,3``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.selection.agnostic import agnostic_features, ranked_features
from mechprobe.selection.named import MAKERS, named_features

if TYPE_CHECKING:
    import pandas as pd

_TOP = re.compile(r"top:?(\d+)")
SPEC_FORMS = "top50, top:N, agnostic, rule:EXPRESSION, file:PATH, ids:1,2,3 or random:N@SEED"


@dataclass(frozen=True)
class Chosen:
    """The features of a specification.

    Attributes:
        ids: Feature indices, best first.
        agnostic: Number of task-agnostic features among them.
        note: How many features of ``top:N`` are not task-agnostic, in one sentence; empty if there are none.
    """

    ids: tuple[int, ...]
    agnostic: int
    note: str = ""


def check_spec(spec: str) -> None:
    """Raise `SelectionError` for a specification of an unknown form; needs neither scores nor dictionary."""
    kind, _, rest = spec.partition(":")
    if not (_TOP.fullmatch(spec) or spec == "agnostic" or (kind in MAKERS and rest)):
        raise SelectionError(f"Features '{spec}' cannot be read; write {SPEC_FORMS}.")
    if spec_size(spec) == 0:
        raise SelectionError(f"'{spec}' names no feature; ask for one or more.")


def check_named(spec: str, d_sae: int, table: "pd.DataFrame | None" = None) -> tuple[int, ...]:
    """Check everything about a specification that does not need scores.

    Args:
        spec: The specification.
        d_sae: Features of the dictionary.
        table: The feature table, for ``rule:``.

    Returns:
        The features that a ``rule:`` or ``file:`` specification names now, as they depend on the table or the file.
        Empty for every other specification.

    Raises:
        SelectionError: As in `resolve`, except for errors that only the scores can show.
    """
    check_spec(spec)
    size = spec_size(spec)
    if size is not None and size > d_sae:
        raise SelectionError(f"'{spec}' asks for {size} features and the crosscoder has {d_sae}; ask for fewer.")
    ids = [] if depends_on_tasks(spec) else named_features(spec, np.ones(d_sae, dtype=bool), table)
    return tuple(ids) if spec.startswith(("rule:", "file:")) else ()


def spec_size(spec: str) -> int | None:
    """N of ``topN`` and ``top:N``; None for any other specification."""
    top = _TOP.fullmatch(spec)
    return int(top.group(1)) if top else None


def depends_on_tasks(spec: str) -> bool:
    """Whether values on the tasks decide which features are chosen; other specifications name features outright."""
    return spec == "agnostic" or spec_size(spec) is not None


def resolve(
    spec: str,
    values: Float[ndarray, "task d_sae"],
    *,
    live: Bool[ndarray, " d_sae"],
    threshold: float = 0.2,
    table: "pd.DataFrame | None" = None,
) -> Chosen:
    """The features of a specification.

    Args:
        spec: ``top50`` (any number), ``top:N``, ``agnostic``, ``rule:EXPR``, ``file:PATH``, ``ids:...`` or
            ``random:N@SEED``.
        values: Values of the ranking.
        live: Features that ``top``, ``agnostic`` and ``random`` may choose.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.
        table: The feature table, for ``rule:``; its columns are the names that a rule may use.

    Raises:
        SelectionError: The specification cannot be read, names no feature or one that does not exist, or asks for more
            features than are live.
    """
    check_spec(spec)
    agnostic = agnostic_features(values, threshold, live=live).tolist()
    size = spec_size(spec)
    if size is not None:
        return _top(spec, size, values, len(agnostic), live)
    if spec == "agnostic":
        if not agnostic:
            raise SelectionError("No feature is above the threshold on every task; take top50, or a lower threshold.")
        return Chosen(tuple(agnostic), len(agnostic))
    ids = named_features(spec, live, table)
    return Chosen(tuple(ids), len(set(ids) & set(agnostic)))


def _top(
    spec: str, n: int, values: Float[ndarray, "task d_sae"], n_agnostic: int, live: Bool[ndarray, " d_sae"]
) -> Chosen:
    """The first ``n`` live features of the ranking."""
    ids = [int(k) for k in ranked_features(values) if live[k]][:n]
    if len(ids) < n:
        raise SelectionError(
            f"'{spec}' asks for {n} features and {len(ids)} are live on the gained samples; ask for at most {len(ids)}."
        )
    inside = min(n_agnostic, n)
    note = f"{inside} are task-agnostic, {n - inside} were filled from the ranking below them" if inside < n else ""
    return Chosen(tuple(ids), inside, note)


def leave_one_task_out(
    spec: str,
    values: Float[ndarray, "task d_sae"],
    tasks: Sequence[str],
    *,
    live: Bool[ndarray, " d_sae"],
    threshold: float = 0.2,
) -> dict[str, tuple[int, ...]]:
    """For every task, the features that the same specification chooses from the other tasks.

    Args:
        spec: The specification, see `resolve`.
        values: Values of the ranking.
        tasks: Names of the first axis.
        live: Features that may be chosen.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.

    Returns:
        Empty if the specification does not depend on the tasks, or if there is only one task.
    """
    if not depends_on_tasks(spec) or len(tasks) < 2:
        return {}
    return {
        task: resolve(spec, np.delete(values, row, axis=0), live=live, threshold=threshold).ids
        for row, task in enumerate(tasks)
    }
