"""The verdict in one plain sentence, for a reader who knows neither the tool nor its words."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.formatting import listing, points
from mechprobe.interventions.verdicts.rule import (
    CANNOT_TELL,
    DAMAGE,
    IN_PART,
    LIKE_EQUAL_NORM,
    LIKE_RANDOM,
    NO_VERDICT,
    NOT_CLEAR,
    REFUTED,
    SUPPORTED,
)
from mechprobe.types import POOLED

Row = Mapping[str, Any]
_SHOWN = (SUPPORTED, IN_PART)
_REASONS = {
    NOT_CLEAR: "the effect is not clear of 0",
    DAMAGE: "the edit damages the model",
    REFUTED: "this is less than a tenth of what the whole residual does",
    CANNOT_TELL: "replacing the whole residual at this site moves too little",
}
"""Verdict → what keeps the claim from being shown."""
_AS_MUCH = {LIKE_RANDOM: "random sets of features", LIKE_EQUAL_NORM: "other changes of the same size"}
"""Verdict → what does as much as the features."""


def main_rows(results: Row) -> list[Row]:
    """The pooled verdict on the transplant into each model of the pair, base first; on another edit where there is none."""
    rows = [row for row in results.get("verdicts") or [] if row["task"] == POOLED]
    found = []
    for model in results["pair"]:
        own = [row for row in rows if row["model"] == model]
        found += [next((row for row in own if row["edit"] == "transplant"), *own[:1])] if own else []
    return found


def comparison_of(results: Row, row: Row) -> Row | None:
    """The comparison of an edit with its rivals."""
    same = [
        each
        for each in results.get("comparisons") or []
        if (each["model"], each["edit"]) == (row["model"], row["edit"])
    ]
    return same[0] if same else None


def controls_of(row: Row) -> list[tuple[str, int, float]]:
    """``(name, number of draws, largest effect)`` of every kind of control."""
    kinds = (
        ("random sets", "n_random", "random_max"),
        ("random sets at the set's norm", "n_rescaled", "rescaled_max"),
        ("changes of equal norm along other decoders", "n_equal_norm", "equal_norm_max"),
        ("changes of equal norm along other shifts", "n_shifted", "shifted_max"),
    )
    return [(name, row[n], row[most]) for name, n, most in kinds if row.get(n) and row.get(most) is not None]


def plain_verdict(results: Row, *, trusted: bool = True) -> str:
    """One sentence: whether the features cause the change, by how much, and what speaks against it; empty without a verdict.

    Args:
        results: The content of ``interventions/results.json``.
        trusted: Whether the crosscoder passed the quality gate.
    """
    rows = main_rows(results)
    if not rows:
        return ""
    (base, tuned), verdicts = results["pair"], [str(row["verdict"]) for row in rows]
    n = rows[0].get("n_features")
    features = f"{n} selected features" if n and n > 1 else "selected features"
    claim = f"the {features} cause the change from {base} to {tuned}"
    effects = [f"{_done(row, base)} {_change(row, base)} points" for row in rows]
    effects[0] = effects[0].replace(" by ", " they change accuracy by ", 1)
    against = _against(results, rows)
    refuted = all(verdict == REFUTED for verdict in verdicts)
    said = f"{'; ' if refuted else ', but '}{against}" if against else f", {_beside(results, rows)}"
    untested = [model for model in results["pair"] if model not in {row["model"] for row in rows}]
    said += "".join(f"; {model} was not tested" for model in untested)
    said += "" if trusted else "; the crosscoder did not pass the quality gate, so this decides nothing"
    return f"{_lead(verdicts, [row['model'] for row in rows])} {claim}: {', '.join(effects)}{said}."


def _beside(results: Row, rows: Sequence[Row]) -> str:
    """What a claim that nothing speaks against was compared with."""
    if all(controls_of(row) for row in rows):
        return "more than under every control"
    compared = any((comparison_of(results, row) or {}).get("rivals") for row in rows)
    return "more than under the controls that were measured" if compared else "and nothing was measured beside it"


def _lead(verdicts: Sequence[str], models: Sequence[str]) -> str:
    if len(models) == 1 and verdicts[0] in _SHOWN:
        return f"The edits support in {models[0]} only that"
    if all(verdict in _SHOWN for verdict in verdicts):
        return "The edits support in part that" if IN_PART in verdicts else "The edits support that"
    if all(verdict == REFUTED for verdict in verdicts):
        return "The edits refute that"
    if any(verdict in _SHOWN for verdict in verdicts):
        return "The edits support in one model only that"
    if all(verdict == CANNOT_TELL or verdict.startswith(NO_VERDICT) for verdict in verdicts):
        return "It cannot be told whether"
    return "It is not shown that"


def _done(row: Row, base: str) -> str:
    """What was done to which model, as the beginning of a clause that ends with a number."""
    if row["edit"] != "transplant":
        return f"under {row['edit']} in {row['model']} by"
    return f"put into {base} by" if row["model"] == base else f"taken out of {row['model']} by"


def _below_zero(row: Row) -> bool:
    """Whether the whole interval of an effect is against the claimed direction."""
    high = (row.get("effect") or [None] * 3)[2]
    return high is not None and high < 0


def _change(row: Row, base: str) -> str:
    """The change of accuracy in points; effects are in the claimed direction, which is a loss in the tuned model."""
    value = (row.get("effect") or [None])[0]
    return points(value if value is None or row["model"] == base else -value).replace("-", "−")


def _against(results: Row, rows: Sequence[Row]) -> str:
    """What speaks against the claim, with the model where the two models differ."""
    by_model = {row["model"]: _reason(results, row) for row in rows}
    if len(set(by_model.values())) == 1:
        return next(iter(by_model.values()))
    return "; ".join(f"in {model}, {reason}" for model, reason in by_model.items() if reason)


def _reason(results: Row, row: Row) -> str:
    verdict = str(row["verdict"])
    reason = _REASONS.get(verdict, "" if verdict in (*_SHOWN, *_AS_MUCH) else f"the verdict is “{verdict}”")
    if verdict == NOT_CLEAR and _below_zero(row):
        reason = "the effect goes the other way"
    if verdict.startswith(NO_VERDICT):
        reason = f"there is no verdict ({verdict.removeprefix(NO_VERDICT)})"
    equals = [_AS_MUCH[verdict]] if verdict in _AS_MUCH else []
    rank = (comparison_of(results, row) or {}).get("no_better_than")
    if rank is not None:
        equals.append("a single direction" if rank == 1 else f"{rank} directions")
    verb = "does" if equals == ["a single direction"] else "do"
    return listing(filter(None, [reason, f"{listing(equals)} {verb} as much" if equals else ""]))
