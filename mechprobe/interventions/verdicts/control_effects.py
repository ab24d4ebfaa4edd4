"""An effect beside those of its controls: means, largest effects, p-values and norms, as numbers and in words."""

from collections.abc import Sequence
from typing import Any

from mechprobe.interventions.result_rows import ConditionResult, SetKind, Verdict
from mechprobe.interventions.verdicts.effects import claimed
from mechprobe.statistics import randomization_p

_FAMILIES: dict[SetKind, str] = {
    "random": "random",
    "rescaled": "rescaled",
    "shuffled": "equal_norm",
    "shifted": "shifted",
}
"""Set kind of a control → its name in the fields of `AgainstControls`."""


def points(accuracy: float, *interval: float) -> str:
    """``47``, or ``47 [40, 54]`` for an accuracy with its interval, in points (hundredths of the samples); a dash for NaN."""
    value, *ends = (str(round(100 * part)) if part == part else "–" for part in (accuracy, *interval))
    return f"{value} [{', '.join(ends)}]" if ends else value


def stricter(first: float, second: float) -> float:
    """The larger of two p-values; the other one where one is NaN, because its controls were not run."""
    if first != first or second != second:
        return second if first != first else first
    return max(first, second)


def control_effects(same: Sequence[ConditionResult], task: str, effect: float, sign: float) -> dict[str, Any]:
    """Fields of `AgainstControls` on the controls of one edit in one host; ``same`` are all conditions of that edit."""
    found: dict[str, Any] = {}
    for kind, name in _FAMILIES.items():
        values = [claimed(row.accuracy_delta[task], sign).value for row in same if row.set_kind == kind]
        found |= {
            f"{name}_mean": _mean(values),
            f"{name}_max": max(values, default=None),
            f"n_{name}": len(values),
            f"p_{name}": randomization_p(effect, values),
        }
    own, random = ([row.change_norm for row in same if row.set_kind == kind] for kind in ("selected", "random"))
    norms = {"change_norm": own, "random_change_norm": random}
    return found | {name: _mean([norm for norm in given if norm is not None]) for name, given in norms.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def holm_note(p: float, row: Verdict) -> str:
    """The Holm-adjusted p-value in words; empty where there is one test."""
    return f" (Holm over {row.n_tests}: {p:.2g})" if row.n_tests > 1 and p == p else ""


def control_phrases(row: Verdict) -> list[str]:
    """The controls in words. Of two kinds, the adjusted p-value stands beside the stricter one, which decides."""
    return [*_random_phrases(row), *_equal_norm_phrases(row)]


def _random_phrases(row: Verdict) -> list[str]:
    parts, decides = [], stricter(row.p_random, row.p_rescaled)
    notes = [holm_note(row.p_random_holm, row) if p == decides else "" for p in (row.p_random, row.p_rescaled)]
    if row.random_mean is not None:
        worth = "" if row.n_random_effective is None else f" (worth {row.n_random_effective:.0f} independent draws)"
        mean = points(row.random_mean)
        parts.append(f"{row.n_random} matched random sets{worth} {mean} on average, p = {row.p_random:.3f}{notes[0]}")
    if row.random_change_norm is not None and row.change_norm:
        parts.append(f"they write {row.random_change_norm / row.change_norm:.2f} of the norm")
    if row.rescaled_mean is not None:
        parts.append(f"rescaled to its norm {points(row.rescaled_mean)} on average, p = {row.p_rescaled:.3f}{notes[1]}")
    return parts


def _equal_norm_phrases(row: Verdict) -> list[str]:
    """The stricter kind comes first and is named as such."""
    turned = [
        (row.p_equal_norm, row.n_equal_norm, row.equal_norm_max, "decoders"),
        (row.p_shifted, row.n_shifted, row.shifted_max, "shifts"),
    ]
    known = sorted(((p, n, most, along) for p, n, most, along in turned if most is not None), key=lambda one: -one[0])
    parts = []
    for place, (p, n, most, along) in enumerate(known):
        note = "" if place else holm_note(row.p_equal_norm_holm, row)
        note += ", the stricter of the two" if place == 0 and len(known) > 1 and p > known[1][0] else ""
        parts.append(
            f"{n} changes of equal norm along other features' {along} at most {points(most)}, p = {p:.3f}{note}"
        )
    return parts
