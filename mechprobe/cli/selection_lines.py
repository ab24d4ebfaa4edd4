"""The main numbers of a selection as lines of text."""

from collections.abc import Mapping
from typing import Any


def selection_lines(data: Mapping[str, Any]) -> list[str]:
    """What was chosen from which samples, how stable that is, and how well the random sets match; from ``selection.json``."""
    from mechprobe.report.tables.interventions import silence_sentences

    sizes = data.get("gained_sizes") or {}
    gained = ", ".join(_gained(task, n, sizes.get(task, n)) for task, n in data["n_gained"].items())
    lines = [f"Samples that {data['pair'][1]} gained over {data['pair'][0]} (selection half): {gained}"]
    if data.get("too_few"):
        lines.append("Left out for too few: " + ", ".join(f"{task} {n}" for task, n in data["too_few"].items()))
    for ranking, sizes in data["agnostic_sizes"].items():
        per_task = ", ".join(f"{task} {n}" for task, n in sizes["per_task"].items())
        lines.append(f"Features above the threshold by {ranking}: {per_task}; on all tasks {sizes['all_tasks']}")
    lines += _attribution_lines(data)
    head = ", ".join(str(k) for k in data["features"][:10])
    lines.append(f"{data['rule']} by {data['ranking']}: {len(data['features'])} features, first {head}")
    lines += [data["note"]] if data["note"] else []
    lines += silence_sentences(data)
    return lines + stability_lines(data) + control_lines(data.get("control_match") or {})


def _gained(task: str, n_read: int, size: int) -> str:
    return f"{task} {size}" if n_read == size else f"{task} {size} ({n_read} read)"


def _attribution_lines(data: Mapping[str, Any]) -> list[str]:
    """What the path of an attribution changes, and how much of it the steps miss."""
    base, tuned = data["pair"]
    other = {"ig": f"with {base}'s features", "relie": "without features"}
    return [
        f"Log-probability of the right answer by {kind}, per token, {tuned} as it is and {other[kind]}: "
        + ", ".join(
            f"{task} {row['metric']:.2f} and {row['without']:.2f} (steps miss {_percent(row['completeness_gap'])} of it)"
            for task, row in tasks.items()
        )
        for kind, tasks in (data.get("attribution") or {}).items()
    ]


def stability_lines(data: Mapping[str, Any]) -> list[str]:
    """Bootstrap, thresholds and leave-one-task-out."""
    lines, stability = [], data.get("stability") or {}
    bootstrap = stability.get("bootstrap")
    if bootstrap:
        middle, low, high = bootstrap["jaccard"]
        lines.append(
            f"Samples drawn again ({bootstrap['n_draws']} draws): {bootstrap['n_in_95_percent']} of "
            f"{len(bootstrap['frequency'])} features are chosen in 95 % of the draws, {bootstrap['n_in_half']} in half; "
            f"{bootstrap['n_outside_in_half']} others in half; Jaccard with the selection {middle:.2f} [{low:.2f}, {high:.2f}]"
        )
    thresholds = stability.get("thresholds") or {}
    if thresholds.get("sizes"):
        sizes = ", ".join(f"{row['all_tasks']} at {_percent(row['threshold'])}" for row in thresholds["sizes"])
        pairs = ", ".join(
            f"{'-' if pair['jaccard'] is None else format(pair['jaccard'], '.2f')} of "
            + " and ".join(_percent(value) for value in pair["thresholds"])
            for pair in thresholds["jaccard"]
        )
        lines.append(f"Threshold by {data['ranking']}: on all tasks {sizes}; Jaccard {pairs or '-'}")
    left_out = data.get("leave_one_task_out") or {}
    if left_out:
        chosen = set(data["features"])
        cells = (f"{task} {len(chosen & set(row['features']))} of {len(chosen)}" for task, row in left_out.items())
        lines.append(f"Chosen again without one task: {', '.join(cells)}")
    return lines


def control_lines(match: Mapping[str, Any]) -> list[str]:
    """How well the random sets match, and a warning where they do not."""
    if not match:
        return []
    covariates = match["covariates"]
    differences = ", ".join(f"{name} {row['difference']:+.2f}" for name, row in covariates.items())
    overlap = "" if match["mean_overlap"] is None else f", two share {_percent(match['mean_overlap'])}"
    worst = match["worst_pair"]
    lines = [
        f"{match['n_sets']} random sets of {match['n_features']}: {match['n_distinct']} distinct features of "
        f"{match['n_pool']}{overlap}; means against the selection's in standard deviations: {differences}; worst pair "
        f"{worst['feature']} and {worst['random']} at {worst['distance']:.2f}"
    ]
    if match["beyond_caliper"]:
        named = ", ".join(f"{name} ({_means(covariates[name])})" for name in match["beyond_caliper"])
        lines.append(
            f"Warning: the random sets differ from the selection by more than {match['caliper']:g} standard deviations in "
            f"{named}; believe the changes of equal norm before these sets."
        )
    return lines


def _means(row: Mapping[str, Any]) -> str:
    """Both means of a covariate, and how near any set could come where none can come to 0."""
    means = f"{row['random']:.3g} against {row['selected']:.3g}"
    return means if abs(row["at_best"]) < 0.005 else f"{means}; no set here comes nearer than {row['at_best']:+.2f}"


def _percent(share: float | int | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
