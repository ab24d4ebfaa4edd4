"""Specifications that name features outright: ``rule:``, ``file:``, ``ids:`` and ``random:``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from mechprobe.errors import SelectionError
from mechprobe.records import read_jsonl

if TYPE_CHECKING:
    import pandas as pd


def named_features(spec: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
    """Features of a ``rule:``, ``file:``, ``ids:`` or ``random:`` specification.

    Args:
        spec: The specification.
        live: Features that ``random:`` draws from; the length is the size of the dictionary.
        table: The feature table, for ``rule:``.

    Raises:
        SelectionError: The specification cannot be read, names no feature, names one twice, or names one that the
            dictionary does not have.
    """
    kind, _, rest = spec.partition(":")
    ids = MAKERS[kind](rest, live, table)
    for feature in ids:
        if not 0 <= feature < len(live):
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {len(live) - 1}.")
    if len(set(ids)) != len(ids):
        raise SelectionError(f"'{spec}' names a feature twice; name each feature once.")
    if not ids and kind != "ids":
        raise SelectionError(f"'{spec}' names no feature; write a less strict specification.")
    return ids


def _by_rule(expression: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
    del live
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


def _by_file(path: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
    del live, table
    file = Path(path)
    if file.suffix == ".jsonl":
        return [_as_id(item.get("feature_idx"), f"{file}:{number}") for number, item in read_jsonl(file)]
    try:
        words = re.split(r"[\s,\[\]]+", file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise SelectionError(f"{path} cannot be read; give a text file of feature indices.") from None
    return [_as_id(word, path) for word in words if word]


def _by_ids(text: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
    del live, table
    return [_as_id(word.strip(), "ids") for word in text.split(",") if word.strip()]


def _as_id(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)
    raise SelectionError(f"{where}: {value!r} is not a feature index; write whole numbers.")


def _by_random(text: str, live: Bool[ndarray, " d_sae"], table: "pd.DataFrame | None") -> list[int]:
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


MAKERS = {"rule": _by_rule, "file": _by_file, "ids": _by_ids, "random": _by_random}
"""Kind of specification, the word before the colon, to the function that lists its features."""
