"""The main numbers of a selection as lines of text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechprobe.formatting import MISSING, decimal, estimate, percent, told_apart

if TYPE_CHECKING:
    from mechprobe.selection.controls import ControlMatch
    from mechprobe.selection.result import SelectionSummary

_NAMES = {"density": "density", "decoder_norm": "decoder norm", "write": "contribution norm", "difference": "J"}


def selection_lines(summary: "SelectionSummary") -> list[str]:
    """Which features were chosen from which samples, how stable the choice is, and how well the random sets match."""
    base, tuned = summary.pair
    sizes = summary.gained_sizes
    gained = {task: n if n == sizes[task] else f"{sizes[task]} ({n} read)" for task, n in summary.n_gained.items()}
    lines = [f"Samples that {tuned} gained over {base} (selection half): {_listed(gained)}"]
    if summary.too_few:
        lines.append("Left out for too few samples: " + _listed(summary.too_few))
    for name, row in summary.agnostic_sizes.items():
        lines.append(f"Features above the threshold by {name}: {_listed(row.per_task)}; on all tasks {row.all_tasks}")
    for kind, paths in summary.attribution.items():
        other = f"with {base}'s features" if kind == "ig" else "without features"
        ends = {task: f"{path.metric:.2f} and {path.without:.2f}" for task, path in paths.items()}
        missed = {task: f"{percent(path.completeness_gap)} %" for task, path in paths.items()}
        of = f"Log-probability of the right answer by {kind}, per token, {tuned} unedited and {other}"
        lines.append(f"{of}: {_listed(ends)}; share of the change that the steps miss: {_listed(missed)}")
    first = ", ".join(map(str, summary.features[:10]))
    lines.append(f"{summary.rule} by {summary.ranking}: {len(summary.features)} features, first {first}")
    lines += [
        line for line in (summary.note, summary.outcomes_from, summary.silent.sentence) if line
    ] + _stability_lines(summary)
    for match, edits in ((summary.control_match, "edits of one model"), (summary.transplant_match, "transplants")):
        lines += _control_lines(match, edits) if match else []
    return lines


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _stability_lines(summary: "SelectionSummary") -> list[str]:
    lines, stability = [], summary.stability
    if stability and stability.bootstrap:
        found = stability.bootstrap
        lines.append(
            f"Of {len(found.frequency)} features, {found.n_in_95_percent} are chosen in 95 % of {found.n_draws} bootstrap draws and "
            f"{found.n_in_half} in half of them, as are {found.n_outside_in_half} others. The draws overlap the selection by "
            f"{estimate(found.jaccard, decimals=2)} (Jaccard)."
        )
    if stability and (at := stability.thresholds).sizes:
        sizes = ", ".join(f"{row.all_tasks} at {percent(row.threshold)} %" for row in at.sizes)
        pairs = [f"{decimal(p.jaccard)} of {' and '.join(map(percent, p.thresholds))} %" for p in at.jaccard]
        lines.append(f"Threshold by {summary.ranking}: on all tasks {sizes}; Jaccard {', '.join(pairs) or MISSING}")
    if summary.leave_one_task_out:
        chosen, rest = set(summary.features), summary.leave_one_task_out
        cells = {task: f"{len(chosen & set(row.features))} of {len(chosen)}" for task, row in rest.items()}
        lines.append(f"Chosen again without one task: {_listed(cells)}")
    return lines


def _control_lines(match: "ControlMatch", edits: str) -> list[str]:
    overlap = f", two share {percent(match.mean_overlap)} %" if match.n_sets > 1 else ""
    differences = ", ".join(f"{_NAMES[name]} {row.difference:+.2f}" for name, row in match.covariates.items())
    worst = match.worst_pair
    lines = [
        f"{match.n_sets} random sets of {match.n_features} for {edits}, worth {match.n_effective:.0f} independent draws: "
        f"{match.n_distinct} distinct features of {match.n_pool}{overlap}; "
        f"differences of means from the selection in standard deviations: {differences}; worst pair {worst.feature} and "
        f"{worst.random} at {worst.distance:.2f}"
    ]
    beyond = []
    for name in match.beyond_caliper:
        row = match.covariates[name]
        limit = f"; no set here comes nearer than {row.at_best:+.2f}" if abs(row.at_best) >= 0.005 else ""
        random, selected = told_apart(row.random, row.selected)
        beyond.append(f"{_NAMES[name]} ({random} against {selected}: {row.difference:+.2f} standard deviations{limit})")
    if beyond:
        lines.append(
            f"Warning: the random sets for {edits} differ from the selection by more than {match.caliper:g} standard deviations in "
            f"{', '.join(beyond)}; trust the rescaled sets and the changes of equal norm more than these sets."
        )
    return lines
