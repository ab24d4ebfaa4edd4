"""The report of an emergence stage: one self-contained HTML file, the same as Markdown, and the figures as PNG."""

from collections.abc import Iterable
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.emergence.overlap import SeedSpread
from mechprobe.emergence.result import ArmCourse, Emergence
from mechprobe.environment import require
from mechprobe.files import write_bytes, write_text
from mechprobe.report.pages.html import figure_files, shown, single_page
from mechprobe.report.pages.markdown import section_lines
from mechprobe.report.result import Page, Picture, Section, Table
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTIONS = {
    "curves": (
        "Emergence curves",
        "Bands: 95 % bootstrap interval over the features of the first seed's dictionary; thin "
        "lines: further seeds. The upper panels show how much of the change between base and the last checkpoint is reached.",
    ),
    "overlap": (
        "Overlap of the sets of highest NRN",
        "At every two checkpoints, in one dictionary over base and checkpoints, in "
        "percent. With several seeds: mean and [smallest, largest].",
    ),
    "pairs": (
        "Overlap in dictionaries that were trained apart",
        "The same for pairwise dictionaries of base and one checkpoint, trained apart and matched by decoder (Hungarian). "
        "The number in the title is the ceiling: two dictionaries of the same models that differ only in their seed.",
    ),
    "causal": (
        "Causal strength",
        "By integrated gradients through the reconstruction (RelIE, arXiv 2509.05291). Bands: 95 % "
        "bootstrap interval over prompts.",
    ),
}
_CURVES = {
    "reached_norm": "change of norms reached",
    "reached_shift": "change of decoders reached",
    "departure": "mean |NRN − ½|",
    "specific": "specific by NRN",
    "confirmed": "specific, confirmed",
}
_CAUSAL_NOTE = (
    "With few prompts, sampling noise increases a share of absolute differences and draws a rank correlation towards 0, in the "
    "value and again in the draws of its interval. The last column is the mean of the draws minus the share. If it is clearly "
    "above 0, the share itself is too high by about as much or more."
)


def emergence_report(folder: Path | str) -> Path:
    """Write ``report/index.html``, ``report/report.md`` and the figures into an emergence folder.

    Returns:
        Path of the HTML file.

    Raises:
        ArtifactError: The folder holds no finished emergence stage.
        DependencyError: matplotlib is not installed.
    """
    require("matplotlib", "The report of an emergence stage")
    from mechprobe.report.figures import drawing

    folder = Path(folder)
    found = Emergence.load(folder)
    with Stage.open(
        folder / "report", name="emergence-report", config={}, inputs={"emergence": folder}, remake=True
    ) as stage:
        if not stage.done:
            drawings = {
                name: drawing.draw(figure, name, _CAPTIONS[name][0]) for name, figure in draw_emergence(found).items()
            }
            for name, content in (files := figure_files(drawings)).items():
                write_bytes(stage.folder / name, content)
            page = Page(title="Emergence of features", intro=[], sections=[*sections(found), _figures(list(drawings))])
            write_text(stage.folder / "index.html", single_page(page, shown(drawings)))
            lines = [
                f"# {page.title}",
                *(line for each in page.sections for line in section_lines(each, set(drawings))),
            ]
            write_text(stage.folder / "report.md", "\n".join(lines) + "\n")
            stage.finish(outputs=["index.html", "report.md", *files])
    return folder / "report" / "index.html"


def draw_emergence(found: Emergence) -> "dict[str, Figure]":
    """The figures of everything that was measured, by name."""
    from mechprobe.report.figures.emergence import causal_figure, curves_figure, overlap_figure, pairs_figure

    figures = {"curves": curves_figure(found), "overlap": overlap_figure(found)}
    if found.pairs:
        figures["pairs"] = pairs_figure(found)
    if found.causal:
        figures["causal"] = causal_figure(found)
    return figures


def sections(found: Emergence) -> list[Section]:
    """Every table of the report; the first two, the claim and the arms, are the summary that the command prints."""
    causal = [_causal_table(found)] if found.causal else []
    parts = [_claim_table(found), _arm_table(found), _curves_table(found), _overlap_table(found)]
    return [*parts, *causal, _quality_table(found)]


def _section(name: str, title: str, texts: list[str], head: list[str], rows: list[list[str]]) -> Section:
    """A section of one table; its first text is what it says."""
    says, *paragraphs = texts or [""]
    table = Table(title=title, head=head, rows=rows, folded=False)
    return Section(id=name, title=title, says=says, paragraphs=paragraphs, tables=[table])


def _figures(names: list[str]) -> Section:
    pictures = [Picture(name=name, title=_CAPTIONS[name][0], caption=_CAPTIONS[name][1]) for name in names]
    return Section(
        id="figures",
        title="Figures",
        says="The same numbers as curves over training and as overlaps.",
        pictures=pictures,
    )


def _claim_table(found: Emergence) -> Section:
    """One row for each word of the claim."""
    title = "SFT early and specialized, RL restrained and continuing (arXiv 2604.25011)?"
    head = ["word", "found", "number", "sft", "rl", "sft − rl, per dictionary seed"]
    if found.claim is None:
        return _section("claim", title, ["There are no arms of sft and of rl, so the claim was not judged."], head, [])
    rows = []
    for clause in found.claim.clauses:
        differences = "; ".join(map(_interval_text, clause.differences))
        shown = {True: "holds", False: "not shown", None: "no claim"}[clause.holds]
        rows.append([clause.word, shown, clause.number, _text(clause.sft), _text(clause.rl), differences])
    kept = {
        arm: [cell.value for cell in found.arms[arm][0].curves["adjacent_overlap"]]
        for arm in sum(found.claim.arms.values(), ())
    }
    ranges = "; ".join(f"{arm} {100 * min(cells):.0f} to {100 * max(cells):.0f} %" for arm, cells in kept.items())
    own = (
        f"The paper reports that neighbors share over 80 % in SFT and almost nothing in RL. Here they share: {ranges}."
    )
    return _section("claim", title, [*found.claim.sentences, own, found.claim.rule], head, rows)


def _arm_table(found: Emergence) -> Section:
    """One row for each arm and seed."""
    rows = []
    for name, courses in found.arms.items():
        for course in courses:
            kinds = ", ".join(f"{count} {kind}" for kind, count in course.kinds.items() if count)
            rows.append([name, str(course.seed), f"{course.n_alive:,}", kinds, *_half_texts(course)])
    head = ["arm", "seed", "live features", "kinds", "half of the change at step", "share of training"]
    return _section("arms", "Arms", [f"Layout: {found.layout}.", *undated(found), *found.interval_notes], head, rows)


def _half_texts(course: ArmCourse) -> tuple[str, str]:
    """Where half of the change of the norms is reached, as a step and as a share of training."""
    if not course.steps:
        return "steps unknown", "-"
    half, last = course.curves["half_norm"][0], course.steps[-1]
    step = Interval(half.value * last, half.low * last, half.high * last, half.n)
    return _interval_text(step, 1), _interval_text(half)


def undated(found: Emergence) -> list[str]:
    """A sentence on the arms whose steps are unknown; none where all are known."""
    even = sorted({course.name for courses in found.arms.values() for course in courses if not course.steps})
    if not even:
        return []
    return [
        f"EVENLY SPACED: the optimizer steps of {', '.join(even)} are unknown, so that all checkpoints are drawn evenly spaced, and "
        "neither half of the change nor early is dated. Set emergence.final_steps."
    ]


def _curves_table(found: Emergence) -> Section:
    """One row for each arm and checkpoint, in the dictionary of the first seed."""
    rows = []
    for name, (course, *_) in found.arms.items():
        n = len(course.labels)
        columns = [course.curves[key][-n:] for key in _CURVES]  # some curves have a value for base too
        steps = [f"{step:,}" for step in course.steps] or ["unknown"] * n
        for label, step, *cells in zip(course.labels, steps, *columns, strict=True):
            rows.append([name, label, step, *map(_interval_text, cells)])
    return _section(
        "course", "Course of the arms", [], ["arm", "checkpoint", "optimizer step", *_CURVES.values()], rows
    )


def _overlap_table(found: Emergence) -> Section:
    """One row for each arm and two neighboring checkpoints, with intervals over seeds, and over features at the end."""
    rows, ceilings = [], []
    for name, courses in found.arms.items():
        spreads = found.over_seeds(name)
        for index, (first, second) in enumerate(pairwise(courses[0].labels)):
            cells = [_seeds_text(spreads.get(key), index) for key in ("overlap", "jaccard", "pairs_overlap")]
            kept = _interval_text(courses[0].curves["adjacent_overlap"][index])
            rows.append([name, f"{first}, {second}", str(len(courses)), *cells, kept])
        if name in found.pairs:
            ceilings.append(f"{name} {_interval_text(spreads['ceiling_overlap'].at(0))}")
    shares = [f"|A∩B| / top{kind}" for kind in ("", ", trained apart", ", over features")]
    head = ["arm", "checkpoints", "seeds", shares[0], "Jaccard", *shares[1:]]
    notes = ["Intervals are the smallest and the largest seed; in the last column, 95 % bootstrap over features."]
    if ceilings:
        notes.append(
            f"Two dictionaries of the same models, trained with different seeds, share: {'; '.join(ceilings)}."
        )
    return _section("overlaps", "Overlap of neighboring checkpoints", notes, head, rows)


def _causal_table(found: Emergence) -> Section:
    """One row for each arm and checkpoint."""
    rows = []
    for name, course in found.causal.items():
        labels = found.arms[name][0].labels
        columns = zip(labels, course.departure, course.rank_correlation, course.departure_bias, strict=True)
        rows += [
            [name, label, _interval_text(change), _interval_text(correlation), _text(bias)]
            for label, change, correlation, bias in columns
        ]
    head = ["arm", "checkpoint", "share that changed", "rank correlation of NRN and RelIE", "draws minus share"]
    return _section("relie", "Causal strength (RelIE)", [_CAUSAL_NOTE], head, rows)


def _quality_table(found: Emergence) -> Section:
    """One row for each dictionary."""
    rows = [
        [name, _text(_smallest(item.fve.values())), _text(item.l0, 1), _text(item.dead_frac)]
        for name, item in found.quality.items()
    ]
    return _section(
        "quality", "Dictionaries on held-out tokens", [], ["dictionary", "smallest FVE", "L0", "dead share"], rows
    )


def _smallest(values: Iterable[float]) -> float:
    return min((value for value in values if not isnan(value)), default=float("nan"))


def _text(value: float, digits: int = 3) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"


def _interval_text(item: Interval, digits: int = 3) -> str:
    """``value [low, high]``, or ``value [no interval]``."""
    if isnan(item.value):
        return "-"
    value, low, high = (_text(part, digits) for part in item[:3])
    return f"{value} [no interval]" if isnan(item.low) else f"{value} [{low}, {high}]"


def _seeds_text(spread: SeedSpread | None, index: int) -> str:
    """The overlap of checkpoint ``index`` with the next one, ``mean [smallest, largest]``."""
    return "-" if spread is None else _interval_text(spread.at(index, index + 1))
