"""Which features an intervention edits: rankings and named selections.

With v[t, k] the value of feature k on task t under a ranking (`mechprobe.selection.rankings.scores`): a feature is task-agnostic
when v[t, k] > 0.2 · max_k v[t, k] on every task (arXiv 2604.25011); the ranking is the minimum over tasks of
v[t, k] / max_k v[t, k] (ours), so that task-agnostic features are its head.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.errors import SelectionError
from mechprobe.records import read_jsonl

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.float64]

_TOP = re.compile(r"top:?(\d+)")
SPEC_FORMS = "top50, top:N, agnostic, rule:EXPRESSION, file:PATH, ids:1,2,3 or random:N@SEED"


@dataclass(frozen=True)
class Chosen:
    """Features that a specification names, best first.

    Attributes:
        ids: Feature indices.
        agnostic: How many of them are task-agnostic (the rest, of ``top:N``, was filled from the ranking below).
        note: One sentence, or empty.
    """

    ids: tuple[int, ...]
    agnostic: int
    note: str = ""


def relative_values(values: Values) -> Values:
    """v[t, k] / max_k v[t, k], ``[task d_sae]``; a task with no positive value gives zeros."""
    top = values.max(axis=1, keepdims=True)
    return np.where(top > 0, values / np.where(top > 0, top, 1.0), 0.0)


def agnostic_features(values: Values, threshold: float = 0.2, *, live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Live features above ``threshold`` times the maximum on every task, highest minimum first.

    The maximum of a task is over all features, as the ranking has it.
    """
    lowest = relative_values(values).min(axis=0)
    ids = np.flatnonzero((lowest > threshold) & live)
    return ids[np.argsort(-lowest[ids], kind="stable")]


def ranked_features(values: Values) -> NDArray[np.int64]:
    """All features by the minimum over tasks of their relative value, highest first; ties by index."""
    return np.argsort(-relative_values(values).min(axis=0), kind="stable")


def check_spec(spec: str) -> None:
    """Raise `SelectionError` for a specification of no known form, before any feature is scored."""
    kind, _, rest = spec.partition(":")
    if not (_TOP.fullmatch(spec) or spec == "agnostic" or (kind in _MAKERS and rest)):
        raise SelectionError(f"Features '{spec}' cannot be read; write {SPEC_FORMS}.")
    if spec_size(spec) == 0:
        raise SelectionError("top:0 names no feature; ask for one or more.")


def check_named(spec: str, d_sae: int, table: "pd.DataFrame | None" = None) -> tuple[int, ...]:
    """`check_spec`, and what features that are named outright can have wrong, before any feature is scored.

    Args:
        spec: The specification.
        d_sae: Features of the dictionary.
        table: The feature table, for ``rule:``.

    Returns:
        The features that ``rule:`` or ``file:`` names as table or file are now; empty for a specification whose features
        its text, the scores and the seed settle.

    Raises:
        SelectionError: As `resolve`, but for what only the scores can tell.
    """
    check_spec(spec)
    ids = [] if depends_on_tasks(spec) else _named(spec, np.ones(d_sae, dtype=bool), table)
    return tuple(ids) if spec.startswith(("rule:", "file:")) else ()


def spec_size(spec: str) -> int | None:
    """N of ``topN`` and ``top:N``; None for another specification."""
    top = _TOP.fullmatch(spec)
    return int(top.group(1)) if top else None


def depends_on_tasks(spec: str) -> bool:
    """Whether the values on the tasks choose the features; the other specifications name them outright."""
    return spec == "agnostic" or spec_size(spec) is not None


def resolve(
    spec: str,
    values: Values,
    *,
    live: NDArray[np.bool_],
    threshold: float = 0.2,
    table: "pd.DataFrame | None" = None,
) -> Chosen:
    """Features of a specification.

    Args:
        spec: ``top50`` (any number), ``top:N``, ``agnostic``, ``rule:EXPR``, ``file:PATH``, ``ids:...`` or
            ``random:N@SEED``.
        values: ``[task d_sae]``, the ranking's values.
        live: ``[d_sae]``; ``top`` and ``random`` take live features only.
        threshold: Share of the maximum for task-agnostic features.
        table: The feature table, for ``rule:`` (its columns are the names a rule may use).

    Raises:
        SelectionError: The specification cannot be read, or names no feature, or one that does not exist.
    """
    check_spec(spec)
    agnostic = agnostic_features(values, threshold, live=live).tolist()
    size = spec_size(spec)
    if size is not None:
        return _top(size, values, len(agnostic), live)
    if spec == "agnostic":
        if not agnostic:
            raise SelectionError("No feature is above the threshold on every task; take top50, or a lower threshold.")
        return Chosen(tuple(agnostic), len(agnostic))
    ids = _named(spec, live, table)
    return Chosen(tuple(ids), len(set(ids) & set(agnostic)))


def leave_one_task_out(
    spec: str, values: Values, tasks: Sequence[str], *, live: NDArray[np.bool_], threshold: float = 0.2
) -> dict[str, tuple[int, ...]]:
    """For every task the features that the same specification chooses from the other tasks alone.

    Empty where the specification does not hang on tasks, or where there is only one.

    Args:
        spec: As for `resolve`.
        values: ``[task d_sae]``, the ranking's values.
        tasks: Names of the first axis.
        live: ``[d_sae]``.
        threshold: Share of the maximum for task-agnostic features.
    """
    if not depends_on_tasks(spec) or len(tasks) < 2:
        return {}
    return {
        task: resolve(spec, np.delete(values, row, axis=0), live=live, threshold=threshold).ids
        for row, task in enumerate(tasks)
    }


def _named(spec: str, live: NDArray[np.bool_], table: "pd.DataFrame | None") -> list[int]:
    """Features that ``rule``, ``file``, ``ids`` or ``random`` names, each once and in the dictionary."""
    kind, _, rest = spec.partition(":")
    ids = _MAKERS[kind](rest, live, table)
    for feature in ids:
        if not 0 <= feature < len(live):
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {len(live) - 1}.")
    if len(set(ids)) != len(ids):
        raise SelectionError(f"'{spec}' names a feature twice; name each once.")
    if not ids and kind != "ids":
        raise SelectionError(f"'{spec}' names no feature; loosen it.")
    return ids


def _top(n: int, values: Values, n_agnostic: int, live: NDArray[np.bool_]) -> Chosen:
    """The head of the ranking; task-agnostic features are its first, for they are those above the threshold."""
    ids = [int(k) for k in ranked_features(values) if live[k]][:n]
    inside = min(n_agnostic, len(ids))
    notes = []
    if inside < len(ids):
        notes.append(f"{inside} are task-agnostic, {len(ids) - inside} were filled from the ranking below them")
    if len(ids) < n:
        notes.append(f"only {len(ids)} features are live")
    return Chosen(tuple(ids), inside, "; ".join(notes))


def _by_rule(expression: str, live: NDArray[np.bool_], table: "pd.DataFrame | None") -> list[int]:
    import pandas as pd

    del live
    if table is None:
        raise SelectionError("A rule needs the feature table; run `mechprobe features` first and name its folder.")
    expression = expression.strip().strip("\"'")
    names = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", re.sub(r"\"[^\"]*\"|'[^']*'", "", expression)))
    unknown = sorted(names - set(table.columns) - {"and", "or", "not", "True", "False"})
    if unknown:
        raise SelectionError(f"Rule names '{unknown[0]}'; the feature table has {', '.join(map(str, table.columns))}.")
    if re.search(r"[^\w\s.<>=!()+\-*/&|~\"']", expression) or "__" in expression:
        raise SelectionError(f"Rule '{expression}' may compare columns with numbers or quoted words, and no more.")
    try:
        kept: Any = table.eval(expression, engine="python")
    except Exception as error:  # noqa: BLE001 - pandas raises many types for a malformed expression
        raise SelectionError(
            f"Rule '{expression}' cannot be evaluated ({' '.join(str(error).split())[:200]})."
        ) from None
    if not isinstance(kept, pd.Series) or not pd.api.types.is_bool_dtype(kept):
        raise SelectionError(
            f"Rule '{expression}' says no yes or no of every feature; compare columns, as in mas_rl>0.5."
        )
    rows = table[kept]
    column: Any = next((rows[name] for name in ("feature", "feature_idx") if name in rows.columns), rows.index)
    return [int(k) for k in column]


def _by_file(path: str, live: NDArray[np.bool_], table: Any) -> list[int]:
    del live, table
    file = Path(path)
    if file.suffix == ".jsonl":
        return [_as_id(item.get("feature_idx"), f"{file}:{number}") for number, item in read_jsonl(file)]
    try:
        words = re.split(r"[\s,\[\]]+", file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise SelectionError(f"{path} cannot be read; give a text file of feature indices.") from None
    return [_as_id(word, path) for word in words if word]


def _by_ids(text: str, live: NDArray[np.bool_], table: Any) -> list[int]:
    del live, table
    return [_as_id(word.strip(), "ids") for word in text.split(",") if word.strip()]


def _as_id(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    raise SelectionError(f"{where}: {value!r} is no feature index; write whole numbers.")


def _by_random(text: str, live: NDArray[np.bool_], table: Any) -> list[int]:
    del table
    match = re.fullmatch(r"(\d+)@(\d+)", text)
    if match is None:
        raise SelectionError(f"'random:{text}' cannot be read; write random:N@SEED.")
    n, seed = int(match.group(1)), int(match.group(2))
    if n > len(live):
        raise SelectionError(f"random:{text} asks for {n} features and the crosscoder has {len(live)}; ask for fewer.")
    pool = np.flatnonzero(live)
    if n > len(pool):
        raise SelectionError(f"random:{text} asks for {n} features and {len(pool)} are live; ask for fewer.")
    return [int(k) for k in np.random.default_rng(seed).choice(pool, n, replace=False)]


_MAKERS = {"rule": _by_rule, "file": _by_file, "ids": _by_ids, "random": _by_random}
