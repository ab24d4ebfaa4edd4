"""Whether a transplant does the same under the two read-outs that it is run with; the verdict is of one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.interventions.conditions.conditions import Condition, other_readout, under_readout
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdicts.effects import Right, measurable
from mechprobe.interventions.verdicts.verdict import points_with_interval, sign_of, signed
from mechprobe.statistics import paired_bootstrap
from mechprobe.types import POOLED


def compare_readouts(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Sequence[Mapping[str, Any]],
    held_out: Sequence[str],
    config: InterveneConfig,
) -> list[dict[str, Any]]:
    """One entry per host whose transplant of the selected set was run under both read-outs.

    Two read-outs disagree on a row (a task, or the pooled tasks) of ``min_n`` samples or more where the accuracies under
    them differ by 5 points or more and the interval of the difference is clear of 0 (ours; paired percentile bootstrap).

    Args:
        conditions: As planned.
        right: Condition name → outcomes, with the pooled row.
        rows: Of `mechprobe.interventions.verdicts.effects.condition_results`.
        held_out: Tasks that post-training did not see.
        config: Settings.

    Returns:
        Entries of ``model``, ``edit``, ``features``, ``readout`` (the verdict's), ``other``; ``rows``: ``task``, ``n``,
        ``effect``, ``effect_other`` and ``difference`` (``[value, low, high]``, accuracy in the claimed direction) and
        ``disagree``; and ``sentence``, empty where they disagree nowhere.
    """
    by_name = {row["name"]: row for row in rows}
    found = []
    for main in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        label = under_readout(main.features, other_readout(config))
        other = next((c for c in conditions if (c.model, c.edit, c.features) == (main.model, main.edit, label)), None)
        if other is None:
            continue
        sign = sign_of(main.model, config)
        measured = [
            _row(task, by_name[main.name], by_name[other.name], right[main.name], right[other.name], sign, config)
            for task in [*held_out, POOLED]
        ]
        entry = {
            "model": main.model,
            "edit": main.edit,
            "features": main.features,
            "readout": config.transplant_readout,
            "other": other_readout(config),
            "rows": measured,
        }
        found.append({**entry, "sentence": _sentence(entry, config)})
    return found


def _row(
    task: str,
    main: Mapping[str, Any],
    other: Mapping[str, Any],
    right: Right,
    right_other: Right,
    sign: float,
    config: InterveneConfig,
) -> dict[str, Any]:
    value, low, high, n = paired_bootstrap(right_other[task], right[task], seed=config.seed)
    difference = signed({"accuracy_delta": {task: [value, low, high]}}, task, sign)
    apart = any(measurable(difference, sign=side) for side in (1.0, -1.0))
    return {
        "task": task,
        "n": n,
        "effect": list(signed(main, task, sign)),
        "effect_other": list(signed(other, task, sign)),
        "difference": list(difference),
        "disagree": bool(n >= config.min_n and apart),
    }


def _sentence(entry: Mapping[str, Any], config: InterveneConfig) -> str:
    apart = [row for row in entry["rows"] if row["disagree"]]
    if not apart:
        return ""
    told = "; ".join(
        f"{'the untrained tasks' if row['task'] == POOLED else row['task']} {points_with_interval(row['effect'])} against "
        f"{points_with_interval(row['effect_other'])}, n = {row['n']}"
        for row in apart[::-1]
    )
    verb = "gives" if entry["model"] == config.base else "takes"
    return (
        f"The read-outs disagree on what {entry['edit']} of {entry['features']} in {entry['model']} {verb}, in points under "
        f"{entry['readout']} against {entry['other']}: {told}; the verdict is of the {entry['readout']} read-out "
        f"(intervene.transplant_readout={entry['other']} judges the other)."
    )
