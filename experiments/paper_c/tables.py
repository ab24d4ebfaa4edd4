"""The lines that ``run.py`` prints: scores of every arm, then every claim beside the paper's numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.paper_c.design import ClaimConfig, Experiment
from experiments.paper_c.training import Run
from experiments.paper_c.verdicts import Found, Value, crossed_interval, final_scores, other_tasks, tasks_of
from mechprobe.cli.printing import table_lines
from mechprobe.lab.recipe import TRAINED_SKILL

LEVEL = 0.95
NOT_FOUND = "NOT FOUND"


def percent(value: Sequence[float], *, signed: bool = False) -> str:
    """`47 [39, 53]`, in percent."""
    form = "+.0f" if signed else ".0f"
    middle, low, high = (100 * part for part in value[:3])
    if not np.isfinite(low):
        return f"{middle:{form}}"
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def score(runs: Mapping[str, Run], on: str, *, base: bool = False) -> Value:
    """Final score of an arm over its seeds, or that of its base, with a 95 % interval."""
    first = next(iter(runs.values()))
    groups = [len(first.right[task][0]) for task in tasks_of(first, on)]
    rows = np.stack([final_scores(run, on, base=base) for run in runs.values()])
    return crossed_interval(rows, groups, LEVEL)


def arm_rows(design: Experiment, runs: Mapping[str, Mapping[str, Run]]) -> dict[str, dict[str, str]]:
    """One row for every arm, and one for every base."""
    rows: dict[str, dict[str, str]] = {}
    for name, by_seed in runs.items():
        size = design.arms[name].base
        base_row = "base" if not design.sizes else f"base, {size}"
        for row, base in ((base_row, True), (name, False)):
            if row in rows:
                continue
            first = next(iter(by_seed.values()))
            rows[row] = {"trained skill": percent(score(by_seed, "id", base=base))}
            rows[row]["other skills"] = percent(score(by_seed, "ood", base=base))
            for task in (task for task in first.right if task != TRAINED_SKILL):
                rows[row][task] = percent(score(by_seed, task, base=base)[:1] + (float("nan"),) * 2)
            lengths = [run.mean_lengths(other_tasks(run))[0 if base else -1] for run in by_seed.values()]
            rows[row]["length"] = f"{np.mean(lengths):.1f}"
            rows[row]["cut %"] = f"{100 * np.mean([_cut(run, 0 if base else -1) for run in by_seed.values()]):.0f}"
    return rows


def _cut(run: Run, place: int) -> float:
    return float(np.mean([run.cut[task][place] for task in other_tasks(run)]))


def paper_text(claim: ClaimConfig) -> str:
    """`Qwen3-14B: MATH500 95.1 against 82.4`, or that the numbers were not found."""
    if not claim.paper:
        return NOT_FOUND
    parts = [f"{benchmark} {' against '.join(map(str, values))}" for benchmark, values in claim.paper.items()]
    return f"{claim.model}: {', '.join(parts)}"


def claim_lines(design: Experiment, result: Mapping[str, Any]) -> list[str]:
    """Every claim with its value, status and the paper's numbers, style by style."""
    found = []
    for style in design.styles:
        title = f"{style} traces: " if style else ""
        found.append(f"{title}{result['verdict_by_style'][style]}")
        for claim, entry in zip(design.claims_of(style), result["claims"][style], strict=True):
            each = Found.model_validate(entry)
            seeds = f"{each.value[3]} seeds" + (f", {each.value[4]} items" if each.value[4] else "")
            shown = _dips(each) if claim.kind == "dip" else percent(each.value, signed=True)
            limit = f", limit {100 * claim.than:+.0f}" if claim.than else ""
            ours = "ours, " if claim.ours else ""
            found.append(
                f"  {claim.text}: {shown} ({ours}{100 * each.level:.1f} % interval, {seeds}{limit}): {each.status}"
            )
            found.append(f"    paper: {'no such condition' if claim.ours else paper_text(claim)}")
    return found


def _dips(found: Found) -> str:
    return f"in {sum(found.by_seed):.0f} of {len(found.by_seed)} seeds"


def label_lines(result: Mapping[str, Any]) -> list[str]:
    """The class of every curve, seed by seed."""
    rows: dict[str, dict[str, str]] = {}
    for arm, by_seed in result["labels"].items():
        for task in next(iter(by_seed.values())):
            rows.setdefault(arm, {})[task] = ", ".join(dict.fromkeys(row[task] for row in by_seed.values()))
    return table_lines(rows, list(dict.fromkeys(task for row in rows.values() for task in row)))


def lines(design: Experiment, runs: Mapping[str, Mapping[str, Run]], result: Mapping[str, Any]) -> list[str]:
    """All that is printed."""
    rows = arm_rows(design, runs)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    seeds = sorted({len(by_seed) for by_seed in runs.values()})
    return [
        f"{design.title}: {result['verdict']}",
        f"paper ({design.where}): {design.paper}",
        f"Greedy accuracy in %, 95 % interval over {'/'.join(map(str, seeds))} seeds and {design.n_per_task} items a skill; "
        f"mean response length on other skills. Seeds differ in {design.unit}.",
        *table_lines(rows, columns),
        "Change in points, or relative change of length in %:",
        *claim_lines(design, result),
        "Classes of the curves over training (several: seeds differ):",
        *label_lines(result),
    ]
