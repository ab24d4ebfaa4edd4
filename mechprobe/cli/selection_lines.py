"""The main numbers of a selection as lines of text."""

from math import isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechprobe.selection.control_match import ControlMatch, CovariateMatch
    from mechprobe.selection.result import SelectionSummary
    from mechprobe.selection.stability import BootstrapSummary

_NAMES = {"density": "density", "decoder_norm": "decoder norm", "write": "contribution norm"}


def selection_lines(summary: "SelectionSummary") -> list[str]:
    """Which features were chosen from which samples, how stable the choice is, and how well the random sets match."""
    base, tuned = summary.pair
    gained = ", ".join(_gained(task, n, summary.gained_sizes[task]) for task, n in summary.n_gained.items())
    lines = [f"Samples that {tuned} gained over {base} (selection half): {gained}"]
    if summary.too_few:
        lines.append("Left out for too few samples: " + _listed(summary.too_few))
    lines += [
        f"Features above the threshold by {ranking}: {_listed(counts.per_task)}; on all tasks {counts.all_tasks}"
        for ranking, counts in summary.agnostic_sizes.items()
    ]
    lines += _attribution_lines(summary)
    first = ", ".join(map(str, summary.features[:10]))
    lines.append(f"{summary.rule} by {summary.ranking}: {len(summary.features)} features, first {first}")
    lines += [line for line in (summary.note, summary.silent.sentence) if line]
    return lines + stability_lines(summary) + control_lines(summary.control_match)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _gained(task: str, n_read: int, size: int) -> str:
    return f"{task} {size}" if n_read == size else f"{task} {size} ({n_read} read)"


def _attribution_lines(summary: "SelectionSummary") -> list[str]:
    """The change of the metric along the path of an attribution, and the share of it that the steps miss."""
    base, tuned = summary.pair
    other = {"ig": f"with {base}'s features", "relie": "without features"}
    lines = []
    for kind, paths in summary.attribution.items():
        cells = ", ".join(
            f"{task} {path.metric:.2f} and {path.without:.2f} (steps miss {_percent(path.completeness_gap)} of the change)"
            for task, path in paths.items()
        )
        lines.append(
            f"Log-probability of the right answer by {kind}, per token, {tuned} unedited and {other[kind]}: {cells}"
        )
    return lines


def stability_lines(summary: "SelectionSummary") -> list[str]:
    """How the selection depends on samples, threshold and tasks."""
    lines = []
    stability = summary.stability
    if stability is not None and stability.bootstrap is not None:
        lines.append(_bootstrap_line(stability.bootstrap))
    if stability is not None and stability.thresholds.sizes:
        sizes = ", ".join(f"{row.all_tasks} at {_percent(row.threshold)}" for row in stability.thresholds.sizes)
        pairs = ", ".join(
            f"{'-' if isnan(pair.jaccard) else format(pair.jaccard, '.2f')} of "
            + " and ".join(map(_percent, pair.thresholds))
            for pair in stability.thresholds.jaccard
        )
        lines.append(f"Threshold by {summary.ranking}: on all tasks {sizes}; Jaccard {pairs or '-'}")
    if summary.leave_one_task_out:
        chosen = set(summary.features)
        cells = (
            f"{task} {len(chosen & set(row.features))} of {len(chosen)}"
            for task, row in summary.leave_one_task_out.items()
        )
        lines.append(f"Chosen again without one task: {', '.join(cells)}")
    return lines


def _bootstrap_line(bootstrap: "BootstrapSummary") -> str:
    middle, low, high = bootstrap.jaccard
    return (
        f"Samples drawn again ({bootstrap.n_draws} draws): {bootstrap.n_in_95_percent} of {len(bootstrap.frequency)} "
        f"features are chosen in 95 % of the draws, {bootstrap.n_in_half} in half; {bootstrap.n_outside_in_half} others in "
        f"half; Jaccard with the selection {middle:.2f} [{low:.2f}, {high:.2f}]"
    )


def control_lines(match: "ControlMatch | None") -> list[str]:
    """How well the random sets match, and a warning if they do not."""
    if match is None:
        return []
    differences = ", ".join(f"{_NAMES[name]} {row.difference:+.2f}" for name, row in match.covariates.items())
    overlap = "" if isnan(match.mean_overlap) else f", two share {_percent(match.mean_overlap)}"
    worst = match.worst_pair
    lines = [
        f"{match.n_sets} random sets of {match.n_features}: {match.n_distinct} distinct features of {match.n_pool}{overlap}; "
        f"differences of means from the selection in standard deviations: {differences}; worst pair {worst.feature} and "
        f"{worst.random} at {worst.distance:.2f}"
    ]
    if match.beyond_caliper:
        named = ", ".join(f"{_NAMES[name]} ({_means(match.covariates[name])})" for name in match.beyond_caliper)
        lines.append(
            f"Warning: the random sets differ from the selection by more than {match.caliper:g} standard deviations in "
            f"{named}; trust the changes of equal norm more than these sets."
        )
    return lines


def _means(row: "CovariateMatch") -> str:
    """Both means of a covariate, and the smallest possible difference if that is not 0."""
    means = f"{row.random:.3g} against {row.selected:.3g}"
    return means if abs(row.at_best) < 0.005 else f"{means}; no set here comes nearer than {row.at_best:+.2f}"


def _percent(share: float) -> str:
    return "-" if isnan(share) else f"{100 * share:.0f} %"
