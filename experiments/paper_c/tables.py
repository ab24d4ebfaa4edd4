"""The lines that ``run.py`` prints: scores of every arm, then every claim beside the paper's numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.paper_c.design import ClaimConfig, Experiment
from experiments.paper_c.training import Run
from experiments.paper_c.verdicts import Found, Value, crossed_interval, final_scores, other_tasks, tasks_of
from mechprobe.cli.printing import table_lines
from mechprobe.lab.recipe import TRAINED_SKILL

LEVEL = 0.95
ARM_NAMES = {
    "nocot": "none",
    "half_long": "half wrong, long",
    "game_cot": "game, known opening",
    "game_new": "game, new opening",
    "game_none": "game, answers alone",
}
"""Arms whose names in README.md do not follow from those in the TOML file."""
SHARE, WHOLE = (0.0, 1.0), (-math.inf, math.inf)
RANGES = {"score": (-1.0, 1.0), "gain": (-2.0, 2.0)}
"""Possible values of a claim; a relative change of length is above −1."""
NOT_FOUND = "NOT FOUND"


def arm_name(name: str) -> str:
    """The name of an arm in README.md and in figures: `full_long` is `full, long`, `cot_long` is `long`."""
    return ARM_NAMES.get(name) or name.removeprefix("cot_").replace("_", ", ")


def style_name(design: Experiment, style: str) -> str:
    """The name of a style; the styles of the game are openings."""
    return {"cot": "known opening", "new": "new opening"}[style] if design.name == "game" else style


def verdict_name(verdict: str) -> str:
    """The verdict as a reader sees it."""
    return "not reproduced" if verdict == "not" else verdict


def possible(claim: ClaimConfig) -> tuple[float, float]:
    """The range in which the number of a claim lies by its definition."""
    return RANGES.get(claim.kind, (-1.0, math.inf))


def percent(
    value: Sequence[float], *, signed: bool = False, within: tuple[float, float] = WHOLE, limit: float | None = None
) -> str:
    """`47 [39, 53]`, in percent; the interval is cut at the possible range, which cannot lower its coverage.

    There is one decimal where an end would else be rounded to the limit that it is compared with, though it is another number.
    """
    middle, low, high = value[:3]
    ends = [] if not np.isfinite(low) else [100 * min(max(end, within[0]), within[1]) for end in (low, high)]
    near = limit is not None and any(round(end) == round(100 * limit) and end != 100 * limit for end in ends)
    texts = [_fixed(part, int(near), signed) for part in (100 * middle, *ends)]
    return texts[0] if not ends else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _fixed(number: float, decimals: int, signed: bool) -> str:
    """A rounded number; zero has no sign."""
    text = f"{number:{'+' if signed else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text


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
        for row, base in ((base_row, True), (arm_name(name), False)):
            if row in rows:
                continue
            first = next(iter(by_seed.values()))
            rows[row] = {"trained skill": percent(score(by_seed, "id", base=base), within=SHARE)}
            rows[row]["other skills"] = percent(score(by_seed, "ood", base=base), within=SHARE)
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
        title = f"{style_name(design, style)} traces: " if style else ""
        found.append(f"{title}{verdict_name(result['verdict_by_style'][style])}")
        for claim, entry in zip(design.claims_of(style), result["claims"][style], strict=True):
            each = Found.model_validate(entry)
            seeds = f"{each.value[3]} seeds" + (f", {each.value[4]} items" if each.value[4] else "")
            shown = claim_value(claim, each, signed=True)
            limit = f", limit {100 * claim.than:+.0f}" if claim.than else ""
            ours = "ours, " if claim.ours else ""
            found.append(
                f"  {claim.text}: {shown} ({ours}{100 * each.level:.1f} % interval, {seeds}{limit}): {each.status}"
            )
            found.append(f"    paper: {'no such condition' if claim.ours else paper_text(claim)}")
    return found


def claim_value(claim: ClaimConfig, found: Found, *, signed: bool = False) -> str:
    """The number of a claim with its interval, or the number of seeds that show it."""
    if claim.kind == "dip":
        return _dips(found)
    return percent(found.value, signed=signed, within=possible(claim), limit=claim.than)


def _dips(found: Found) -> str:
    return f"in {sum(found.by_seed):.0f} of {len(found.by_seed)} seeds"


def label_lines(result: Mapping[str, Any]) -> list[str]:
    """The class of every curve, seed by seed."""
    rows: dict[str, dict[str, str]] = {}
    for arm, by_seed in result["labels"].items():
        for task in next(iter(by_seed.values())):
            rows.setdefault(arm_name(arm), {})[task] = ", ".join(dict.fromkeys(row[task] for row in by_seed.values()))
    return table_lines(rows, list(dict.fromkeys(task for row in rows.values() for task in row)))


def lines(design: Experiment, runs: Mapping[str, Mapping[str, Run]], result: Mapping[str, Any]) -> list[str]:
    """All that is printed."""
    rows = arm_rows(design, runs)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    seeds = sorted({len(by_seed) for by_seed in runs.values()})
    return [
        f"{design.title}: {verdict_name(result['verdict'])}",
        f"paper ({design.where}): {design.paper}",
        f"Greedy accuracy in %, 95 % interval over {'/'.join(map(str, seeds))} seeds and {design.n_per_task} items a skill; "
        f"mean response length on other skills. Seeds differ in {design.unit}.",
        *table_lines(rows, columns),
        "Change in points, or relative change of length in %:",
        *claim_lines(design, result),
        "Classes of the curves over training (several: seeds differ):",
        *label_lines(result),
    ]
