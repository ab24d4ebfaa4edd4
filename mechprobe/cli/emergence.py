"""``mechprobe emergence``."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.cache import Dtype, Sites, cache_settings
from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.emergence.overlap import SeedSpread
    from mechprobe.emergence.result import Emergence
    from mechprobe.statistics import Interval

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Work = Annotated[
    Path | None, typer.Option("--work", help="Where store and dictionaries lie; checkpoints/ beside --out by default.")
]
Checkpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of further models, <arm>/step_<n>/ (rl/step_000040/).")
]
Layout = Annotated[
    str | None, typer.Option("--layout", help="arms: a dictionary for each arm; together: one over all.")
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", help="Dictionaries trained with different seeds, pairwise ones too.")
]


@takes_shared_options
def emergence(
    shared: Shared,
    out: Out = None,
    work: Work = None,
    checkpoints: Checkpoints = None,
    prompts: options.Prompts = None,
    sites: Sites = None,
    dtype: Dtype = None,
    layout: Layout = None,
    seeds: Seeds = None,
) -> None:
    """Follow features over training checkpoints: when they appear, how long they stay, and what they cause."""
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.settings import prompt_settings
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.emergence.arms import with_checkpoints
    from mechprobe.pipeline.plans import plan_emergence
    from mechprobe.report.pages.emergence import emergence_report

    extra = cache_settings(sites, dtype=dtype) | prompt_settings(prompts)
    given = {"checkpoints": None if checkpoints is None else str(checkpoints), "layout": layout, "seeds": seeds}
    section = {name: value for name, value in given.items() if value is not None}
    if section:
        extra["emergence"] = section
    beside = None if out is None else out.parent / "checkpoints"
    run = shared.start(extra, own_inputs=prompts is not None, emergence=out, checkpoints=work or beside)
    folder = run.layout.emergence
    models = with_checkpoints(run.config.models, run.config.emergence.checkpoints)
    run.config = run.config.model_copy(update={"models": models})
    found = carry_out(shared, run, "emergence", folder=folder, plan=lambda: plan_emergence(run), work=run.emergence)
    if found is None:
        return
    page = emergence_report(folder)
    if shared.as_json:
        say_json({"folder": str(folder), "report": str(page), **found.to_dict()})
        return
    say_result([*emergence_lines(found), f"\nReport: {page}"], folder)


_SHOWN = (
    ("reached_norm", "change of norms there", 100, 0),
    ("reached_shift", "change of decoders there", 100, 0),
    ("departure", "mean |NRN - 1/2|", 1, 3),
    ("specific", "specific by NRN, %", 100, 1),
    ("confirmed", "specific, confirmed, %", 100, 1),
)


def emergence_lines(found: "Emergence") -> list[str]:
    """The course of every arm with intervals, and what the paper's claim comes to."""
    lines: list[str] = []
    for name in found.arms:
        lines += [*_arm_lines(found, name), *_pair_lines(found, name), ""]
    return [*lines, "Progress of training in brackets.", *found.interval_notes, *claim_lines(found)]


def _arm_lines(found: "Emergence", name: str) -> list[str]:
    from mechprobe.cli.printing import table_lines

    course, spread = found.arms[name][0], found.over_seeds(name)
    kinds = ", ".join(f"{count} {kind}" for kind, count in course.kinds.items() if count)
    columns = [
        f"{label} ({round(100 * done)} %)" for label, done in zip(course.labels, course.progress[1:], strict=True)
    ]
    rows = {
        label: [_cell(cell, factor, digits) for cell in course.curves[key][-len(columns) :]]
        for key, label, factor, digits in _SHOWN
    }
    top = f"top-{course.top}"
    rows[f"{top} kept from the one before, %"] = [
        "",
        *(_cell(cell, 100, 0) for cell in course.curves["adjacent_overlap"]),
    ]
    if len(found.arms[name]) > 1:
        seeds = f"{len(found.arms[name])} seeds, mean [min, max]"
        rows[f"{top} kept, %, {seeds}"] = ["", *_neighbors(spread["overlap"])]
        rows[f"{top} Jaccard, %, {seeds}"] = ["", *_neighbors(spread["jaccard"])]
    if name in found.causal:
        causal = found.causal[name]
        rows["causal strength moved (RelIE)"] = [_cell(cell, 1, 3) for cell in causal.departure]
        rows["rank correlation of NRN and RelIE"] = [_cell(cell, 1, 2) for cell in causal.rank_correlation]
    cells = {label: dict(zip(columns, row, strict=True)) for label, row in rows.items()}
    head = f"{name}: {course.n_alive:,} live features of seed {course.seed} ({kinds})"
    return [head, *table_lines(cells, columns, corner="checkpoint")]


def _pair_lines(found: "Emergence", arm: str) -> list[str]:
    if arm not in found.pairs:
        return []
    pairs, spread = found.pairs[arm], found.over_seeds(arm)
    adjacent = ", ".join(_neighbors(spread["pairs_overlap"]))
    ceiling = _seed_cell(spread["ceiling_overlap"].at(0))
    return [
        f"trained apart, matched by decoder: neighbors share {adjacent} % of the top-{pairs[0].top} "
        f"(same models, other seed: {ceiling} %; {_seed_words(len(pairs))})"
    ]


def _neighbors(spread: "SeedSpread") -> list[str]:
    """Every checkpoint's cell with the one before it, in percent."""
    return [_seed_cell(spread.at(index, index + 1)) for index in range(len(spread.mean) - 1)]


def _seed_cell(cell: "Interval") -> str:
    """``mean [min, max]`` over seeds in percent, the mean alone for one."""
    return _cell(cell, 100, 0) if cell.n > 1 else f"{100 * cell.value:.0f}"


def _seed_words(n: int) -> str:
    return "one seed: no interval" if n == 1 else f"mean [min, max] of {n} seeds"


def claim_lines(found: "Emergence") -> list[str]:
    """The paper's claim word by word, and in two sentences."""
    if found.claim is None:
        return ["The claim of arXiv 2604.25011 needs arms named sft and rl; it was not judged."]
    lines = ["", f"SFT early and specialized, RL restrained and continuing (arXiv 2604.25011)? {found.claim.rule}"]
    for clause in found.claim.clauses:
        differences = "; ".join(_cell(item, 1, 3) for item in clause.differences)
        lines.append(
            f"  {clause.word:<12} {'holds' if clause.holds else 'not shown':<10} {clause.number}: {differences}"
        )
    ranges = []
    for arm in found.claim.arms:
        cells = [cell.value for cell in found.arms[arm][0].curves["adjacent_overlap"]]
        ranges.append(f"{arm} {100 * min(cells):.0f} to {100 * max(cells):.0f} %")
    paper = "The paper's own form, neighbors sharing over 80 % in SFT and almost nothing in RL, reads here: "
    return [*lines, *found.claim.sentences, paper + "; ".join(ranges) + "."]


def _cell(interval: "Interval", factor: float | int, digits: int) -> str:
    """``value [low, high]``; says so where there is no interval."""
    value, low, high = (f"{factor * part:.{digits}f}" for part in interval[:3])
    if isnan(interval.value):
        return "-"
    return f"{value} [no interval]" if isnan(interval.low) else f"{value} [{low}, {high}]"
