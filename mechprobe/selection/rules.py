"""Specifications of the features that an intervention edits, such as ``top50`` or ``ids:1,2,3``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.records import read_jsonl
from mechprobe.selection.agnostic import agnostic_features, ranked_features

if TYPE_CHECKING:
    import pandas as pd

_NAMED = ("rule", "file", "ids", "random")
"""Kinds of specification that name features outright: the words before the colon."""
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
    if not (_TOP.fullmatch(spec) or spec == "agnostic" or (kind in _NAMED and rest)):
        raise SelectionError(f"Features '{spec}' cannot be read; write {SPEC_FORMS}.")
    if spec_size(spec) == 0:
        raise SelectionError(f"'{spec}' names no feature; ask for one or more.")


def check_named(spec: str, d_sae: int, table: "pd.DataFrame | None" = None) -> tuple[int, ...]:
    """Check everything about a specification that does not need scores.

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
    if size is None:
        ids = agnostic if spec == "agnostic" else named_features(spec, live, table)
        if spec == "agnostic" and not ids:
            raise SelectionError("No feature is above the threshold on every task; take top50, or a lower threshold.")
        return Chosen(tuple(ids), len(set(ids) & set(agnostic)))
    ids = [int(k) for k in ranked_features(values) if live[k]][:size]
    if len(ids) < size:
        raise SelectionError(
            f"'{spec}' asks for {size} features and {len(ids)} are live on the gained samples; ask for at most {len(ids)}."
        )
    inside = min(len(agnostic), size)
    rest = f"{size - inside} were filled from the ranking below them"
    return Chosen(tuple(ids), inside, f"{inside} are task-agnostic, {rest}" if inside < size else "")


def leave_one_task_out(
    spec: str,
    values: Float[ndarray, "task d_sae"],
    tasks: Sequence[str],
    *,
    live: Bool[ndarray, " d_sae"],
    threshold: float = 0.2,
) -> dict[str, tuple[int, ...]]:
    """For every task, the features that the same specification chooses from the other tasks, see `resolve`.

    Empty if the specification does not depend on the tasks, or if there is only one task.
    """
    if not depends_on_tasks(spec) or len(tasks) < 2:
        return {}
    return {
        task: resolve(spec, np.delete(values, row, axis=0), live=live, threshold=threshold).ids
        for row, task in enumerate(tasks)
    }


def named_features(spec: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
    """Features of a ``rule:``, ``file:``, ``ids:`` or ``random:`` specification, which draws from ``live``.

    Raises:
        SelectionError: The specification cannot be read, names no feature, names one twice, or names one that the
            dictionary does not have.
    """
    kind, _, rest = spec.partition(":")
    match kind:
        case "rule":
            ids = _by_rule(rest, table)
        case "file":
            ids = _by_file(rest)
        case "random":
            ids = _by_random(rest, live)
        case _:
            ids = [_as_id(word.strip(), "ids") for word in rest.split(",") if word.strip()]
    for feature in ids:
        if not 0 <= feature < len(live):
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {len(live) - 1}.")
    if len(set(ids)) != len(ids):
        raise SelectionError(f"'{spec}' names a feature twice; name each feature once.")
    if not ids and kind != "ids":
        raise SelectionError(f"'{spec}' names no feature; write a less strict specification.")
    return ids


def _by_rule(expression: str, table: "pd.DataFrame | None") -> list[int]:
    if table is None:
        raise SelectionError("A rule needs the feature table; run `mechprobe features` first and name its folder.")
    rows = table[_rule_mask(expression.strip().strip("\"'"), table)]
    column: Any = next((rows[name] for name in ("feature", "feature_idx") if name in rows.columns), rows.index)
    return [int(k) for k in column]


def _rule_mask(expression: str, table: "pd.DataFrame") -> "pd.Series":
    """The truth value of a rule for every row. Names and characters are checked first, so that no code can run."""
    import pandas as pd

    names = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", re.sub(r"\"[^\"]*\"|'[^']*'", "", expression)))
    unknown = sorted(names - set(table.columns) - {"and", "or", "not", "True", "False"})
    if unknown:
        columns = ", ".join(map(str, table.columns))
        raise SelectionError(f"The rule names '{unknown[0]}', which is not a column of the feature table ({columns}).")
    if re.search(r"[^\w\s.<>=!()+\-*/&|~\"']", expression) or "__" in expression:
        raise SelectionError(f"Rule '{expression}' may only compare columns with numbers or quoted words.")
    try:
        mask: Any = table.eval(expression, engine="python")
    except Exception as error:  # noqa: BLE001 - pandas raises many types for a malformed expression
        reason = " ".join(str(error).split())[:200]
        raise SelectionError(f"Rule '{expression}' cannot be evaluated ({reason}).") from None
    if not isinstance(mask, pd.Series) or not pd.api.types.is_bool_dtype(mask):
        raise SelectionError(
            f"Rule '{expression}' does not give true or false for every feature; compare columns, as in mas_rl>0.5."
        )
    return mask


def _by_file(path: str) -> list[int]:
    file = Path(path)
    if file.suffix == ".jsonl":
        return [_as_id(item.get("feature_idx"), f"{file}:{number}") for number, item in read_jsonl(file)]
    try:
        words = re.split(r"[\s,\[\]]+", file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise SelectionError(f"{path} cannot be read; give a text file of feature indices.") from None
    return [_as_id(word, path) for word in words if word]


def _as_id(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    raise SelectionError(f"{where}: {value!r} is not a feature index; write whole numbers.")


def _by_random(text: str, live: Bool[ndarray, " d_sae"]) -> list[int]:
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
