"""Which features an intervention edits: rankings, named selections, and matched random sets as controls.

With v[t, k] the value of feature k on task t (the paper's Score, or the joint attribution J): a feature is
task-agnostic when v[t, k] > 0.2 · max_k v[t, k] on every task (arXiv 2604.25011); the ranking is the minimum over
tasks of v[t, k] / max_k v[t, k] (ours).
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


def agnostic_features(values: Values, threshold: float = 0.2) -> NDArray[np.int64]:
    """Features above ``threshold`` times the maximum on every task, highest minimum first."""
    lowest = relative_values(values).min(axis=0)
    ids = np.flatnonzero(lowest > threshold)
    return ids[np.argsort(-lowest[ids], kind="stable")]


def ranked_features(values: Values) -> NDArray[np.int64]:
    """All features by the minimum over tasks of their relative value, highest first; ties by index."""
    return np.argsort(-relative_values(values).min(axis=0), kind="stable")


def check_spec(spec: str) -> None:
    """Raise `SelectionError` for a specification of no known form, before any feature is scored."""
    kind, _, rest = spec.partition(":")
    if not (_TOP.fullmatch(spec) or spec == "agnostic" or (kind in _MAKERS and rest)):
        raise SelectionError(f"Features '{spec}' cannot be read; write {SPEC_FORMS}.")


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
    agnostic = [int(k) for k in agnostic_features(values, threshold) if live[k]]
    top = _TOP.fullmatch(spec)
    if top:
        return _top(int(top.group(1)), values, agnostic, live)
    if spec == "agnostic":
        if not agnostic:
            raise SelectionError("No feature is above the threshold on every task; take top50, or a lower threshold.")
        return Chosen(tuple(agnostic), len(agnostic))
    kind, _, rest = spec.partition(":")
    ids = _MAKERS[kind](rest, live, table)
    for feature in ids:
        if not 0 <= feature < len(live):
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {len(live) - 1}.")
    if len(set(ids)) != len(ids):
        raise SelectionError(f"'{spec}' names a feature twice; name each once.")
    if not ids and kind != "ids":
        raise SelectionError(f"'{spec}' names no feature; loosen it.")
    return Chosen(tuple(ids), len(set(ids) & set(agnostic)))


def _top(n: int, values: Values, agnostic: list[int], live: NDArray[np.bool_]) -> Chosen:
    if n < 1:
        raise SelectionError("top:0 names no feature; ask for one or more.")
    ranked = [int(k) for k in ranked_features(values) if live[k]]
    ids = (agnostic + [k for k in ranked if k not in set(agnostic)])[:n]
    inside = min(len(agnostic), len(ids))
    notes = []
    if inside < len(ids):
        notes.append(f"{inside} are task-agnostic, {len(ids) - inside} were filled from the ranking below them")
    if len(ids) < n:
        notes.append(f"only {len(ids)} features are live")
    return Chosen(tuple(ids), inside, "; ".join(notes))


def _by_rule(expression: str, live: NDArray[np.bool_], table: "pd.DataFrame | None") -> list[int]:
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
        rows = table.query(expression, engine="python")
    except Exception as error:  # noqa: BLE001 - pandas raises many types for a malformed expression
        raise SelectionError(f"Rule '{expression}' cannot be evaluated ({error}).") from None
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
    pool = np.flatnonzero(live)
    if n > len(pool):
        raise SelectionError(f"random:{text} asks for {n} features and {len(pool)} are live; ask for fewer.")
    return [int(k) for k in np.random.default_rng(seed).choice(pool, n, replace=False)]


_MAKERS = {"rule": _by_rule, "file": _by_file, "ids": _by_ids, "random": _by_random}


def matched_random_sets(
    ids: Sequence[int],
    *,
    density: Values,
    decoder_norm: Values,
    mean_act: Values,
    n_sets: int,
    seed: int,
    n_nearest: int = 10,
    exclude: Sequence[int] = (),
) -> list[list[int]]:
    """Random sets that match ``ids`` feature by feature in density, decoder norm and write.

    For every feature, in an order drawn by the seed, one of the ``n_nearest`` unused live features nearest in
    (log density, log decoder norm, log write), each standardized, is drawn (ours). The write is the mean activation
    times the decoder norm: how much of the residual an ablation takes away where the feature is active. Without it
    a strongly active feature is compared with weak ones, and damage passes for an effect.

    Args:
        ids: The set to match; none of its features enters a random set.
        density: ``[d_sae]``, share of tokens on which each feature is active; 0 = dead.
        decoder_norm: ``[d_sae]``, summed over models.
        mean_act: ``[d_sae]``, mean activation where active.
        n_sets: Draws.
        seed: Of the draws.
        n_nearest: Candidates for each feature.
        exclude: Further features that may not enter.

    Raises:
        SelectionError: Fewer live features are left than the set has.
    """
    live = (density > 0) & (decoder_norm > 0)
    barred = np.zeros(len(live), dtype=bool)
    barred[list({*ids, *exclude})] = True
    pool = np.flatnonzero(live & ~barred)
    if len(pool) < len(ids):
        raise SelectionError(
            f"A random set of {len(ids)} features cannot be drawn: {len(pool)} live features are outside "
            "the selection; select fewer, or train a larger dictionary."
        )
    floor = density[live].min()
    logs = [np.log(np.maximum(values, 1e-12)) for values in (decoder_norm, decoder_norm * mean_act)]
    place = np.stack([np.log(np.maximum(density, floor)), *logs], axis=1)
    place = (place - place[live].mean(axis=0)) / np.maximum(place[live].std(axis=0), 1e-12)
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(n_sets):
        free = np.ones(len(pool), dtype=bool)
        drawn = []
        for feature in rng.permutation(np.asarray(ids, dtype=np.int64)):
            candidates = np.flatnonzero(free)
            distance = ((place[pool[candidates]] - place[feature]) ** 2).sum(axis=1)
            nearest = candidates[np.argsort(distance, kind="stable")[:n_nearest]]
            pick = int(rng.choice(nearest))
            free[pick] = False
            drawn.append(int(pool[pick]))
        sets.append(drawn)
    return sets
