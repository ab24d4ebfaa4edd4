"""The sections of the timeline page."""

from collections import Counter
from collections.abc import Sequence
from math import isfinite
from typing import Any

from mechprobe.dynamics.order import HalfChange, LeadLag, Order
from mechprobe.formatting import MISSING, decimal, estimate, listing, p_value, short_list
from mechprobe.report.config import Axis
from mechprobe.report.result import Picture, Section, Table
from mechprobe.report.timeline.behaviour import BEHAVIOUR, BENCHMARKS, LENGTH, SAFETY, SKILLS
from mechprobe.report.timeline.inside import DIVERGENCE, FEATURES, OVERLAP, WEIGHTS
from mechprobe.report.timeline.log_probabilities import LOGPROBS
from mechprobe.report.timeline.result import ArmTimeline, Series, Timeline
from mechprobe.statistics import Interval

PANELS = (SKILLS, BENCHMARKS, SAFETY, LENGTH, DIVERGENCE, WEIGHTS, BEHAVIOUR, FEATURES, OVERLAP, LOGPROBS)
"""Panels of the figure from top to bottom."""
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "evaluate": ("Skills and response length", (SKILLS, LENGTH)),
    "sweep": ("Benchmarks and safety", (BENCHMARKS, SAFETY)),
    "drift": ("Divergence from base", (DIVERGENCE,)),
    "weights": ("Weights", (WEIGHTS,)),
    "probe": ("Distance of skill profiles", (BEHAVIOUR,)),
    "emergence": ("Features: onset and overlap", (FEATURES, OVERLAP)),
    "logprobs": ("Log-probabilities of tokens", (LOGPROBS,)),
}
"""Stage → title of its section, and the panels of its quantities."""
CANNOT = "cannot be told"


def timeline_sections(found: Timeline) -> list[Section]:
    """The course, what moved first, dips, and the values of every stage; the command of every stage that has not run."""
    sections = [_course(found), _order(found), _dips(found)]
    for stage, (title, panels) in PARTS.items():
        if stage in found.missing:
            sections.append(Section(id=stage, title=title, command=found.missing[stage]))
        else:
            tables = [table for arm, course in found.arms.items() if (table := _values(arm, course, panels)).rows]
            sections.append(Section(id=stage, title=title, says=_measured(found, panels), tables=tables))
    return sections


def _measured(found: Timeline, panels: Sequence[str]) -> str:
    """How many quantities of some panels were measured."""
    n = sum(series.panel in panels for course in found.arms.values() for series in course.series)
    return f"{n:,} quantities of {listing(found.arms)} were measured over training."


def _course(found: Timeline) -> Section:
    unit = "Optimizer steps" if found.axis == "steps" else "Tokens of prompts and responses that training has read"
    caption = (
        f"{unit}: linear from {found.base} at 0 to the first checkpoint, logarithmic after it. Strong lines stand for their "
        "panel, with 95 % intervals over items, prompts or features; thin lines are single tasks or benchmarks. Triangles on the lower "
        "edge: where half of the change of the strong line is reached; their bars are its interval."
    )
    texts = [found.axis_note] if found.axis_note else []
    texts += [f"{arm}: {found.base} and the steps {_places(found, course)}." for arm, course in found.arms.items()]
    texts += [f"{arm} is left out: {why}." for arm, why in found.left_out.items()]
    texts += _gaps(found)
    n = sum(len(course.checkpoints) for course in found.arms.values())
    says = (
        f"{n} checkpoints of {listing(found.arms)} are on one axis of {found.axis}."
        if n
        else "No arm can be placed on the axis."
    )
    picture = Picture(name="timeline", title="All quantities over training", caption=caption)
    return Section(id="course", title="Course", says=says, paragraphs=texts, pictures=[picture])


def _gaps(found: Timeline) -> list[str]:
    """One sentence for each panel and arm whose quantities lack checkpoints, and how to add them."""
    stages = {panel: stage for stage, (_, panels) in PARTS.items() for panel in panels}
    stages |= {LENGTH: "evaluate" if "evaluate" in found.stages else "sweep"}
    texts: dict[str, None] = {}
    for arm, course in found.arms.items():
        for each in course.series:
            lacking = course.lacking(each)
            if lacking:
                texts[
                    f"{arm}, {each.panel}: there are no values at {short_list(lacking)}, and the line is dotted. Add these models to "
                    f"[models] of the configuration, or give all models with --models, and run mechprobe {stages[each.panel]} --force."
                ] = None
    return list(texts)


def _places(found: Timeline, course: ArmTimeline) -> str:
    """``10, 20``, or ``10, 20, at 4,096, 8,192 tokens``."""
    steps = ", ".join(f"{step:,}" for step in course.steps)
    return steps if found.axis == "steps" else f"{steps}, at {', '.join(f'{place:,}' for place in course.at)} tokens"


def _order(found: Timeline) -> Section:
    caption = (
        f"{'Step' if found.axis == 'steps' else 'Number of tokens'} at which half of the change is reached, with its interval. The ends of an interval are checkpoints: what lies between two "
        "checkpoints is not known."
    )
    tables = []
    for arm, course in found.arms.items():
        tables += [
            _halves(f"What moved first: {arm}", course.panels, course, found.axis, noted=not tables),
            _lags(f"Lags: {arm}", course.panels.pairs, found.axis, noted=not tables),
            _halves(f"All quantities: {arm}", course.everything, course, found.axis, folded=True),
            _lags(f"Lags of all quantities: {arm}", course.everything.pairs, found.axis, folded=True),
        ]
    pictures = [Picture(name="order", title="Half of the change, by quantity and arm", caption=caption)]
    says, *more = order_sentences(found) or ["There is no arm whose steps are known."]
    shown = [table for table in tables if table.rows]
    return Section(id="order", title="What moved first", says=says, paragraphs=more, pictures=pictures, tables=shown)


def order_sentences(found: Timeline) -> list[str]:
    """For every arm, the quantities that are shown to precede others."""
    texts = []
    for arm, course in found.arms.items():
        leads = {half.name: course.panels.before(half.name) for half in course.panels.halves}
        told = [f"{name} before {', '.join(later)}" for name, later in leads.items() if later]
        texts.append(f"{arm}: {'; '.join(told)}." if told else f"{arm}: no order {CANNOT.replace('cannot', 'can')}.")
    return texts


def _halves(
    title: str, order: Order, course: ArmTimeline, axis: Axis, *, noted: bool = False, folded: bool = False
) -> Table:
    series = {each.name: each for each in course.series}
    rows = [_half_row(half, order, series[half.name]) for half in order.halves]
    notes = [] if not noted else [
        "Half of the change: its place on the axis with the 95 % interval, whose ends are checkpoints. Before: the quantities that are shown to reach "
        "half of their change later (Holm's adjustment over all pairs of the table). Exact: without sampling error, so that the "
        "interval is the gap between two checkpoints. Times passed: more than once, the course is not a simple rise or fall."
    ]  # fmt: skip
    head = ["quantity", "n", "change", f"half of the change ({axis})", "times passed", "before"]
    return Table(title=title, head=head, rows=rows, notes=notes, folded=folded)


def _half_row(half: HalfChange, order: Order, series: Series) -> list[str]:
    step = f"{CANNOT}: {half.untold}" if half.untold else step_text(half.step)
    later = order.before(half.name)
    return [
        half.name,
        n_text(series),
        change_text(half.change, series),
        step,
        str(half.crossings),
        ", ".join(later) or MISSING,
    ]


def _lags(title: str, pairs: Sequence[LeadLag], axis: Axis, *, noted: bool = False, folded: bool = False) -> Table:
    shown = [pair for pair in pairs if not pair.untold]
    rows = [
        [pair.first, pair.second, step_text(pair.lag, signed=True), p_value(pair.p_holm), f"{pair.first_moved} first" if pair.first_moved else CANNOT]
        for pair in shown
    ]  # fmt: skip
    notes = [] if not noted else [
        "Lag: place of the second minus place of the first, with its 95 % bootstrap interval, which includes the gaps between checkpoints. "
        "Quantities of the same samples are resampled together; exact ones are fixed. An end of 0 is a checkpoint at which one has passed "
        "half and the other has not. p: order at checkpoints, Holm-adjusted over the arm's pairs of this table."
    ]  # fmt: skip
    head = ["first", "second", f"lag in {axis}", "p (Holm)", "order"]
    return Table(title=title, head=head, rows=rows, notes=notes, folded=folded)


def step_text(item: Interval, *, signed: bool = False) -> str:
    """A step, or a difference of steps: ``25.8 [24, 28]``."""
    form = "{:+,.1f}" if signed else "{:,.1f}"
    ends = ("{:+,.0f}" if signed else "{:,.0f}").format
    return f"{form.format(item.value + 0.0)} [{ends(item.low + 0.0)}, {ends(item.high + 0.0)}]"


def change_text(change: Interval, series: Series) -> str:
    """A change with its interval, in points for shares."""
    percent = series.unit == "percent"
    shown = change if series.n else (change.value,)
    unit = {"percent": " points", "plain": ""}.get(series.unit, f" {series.unit}")
    return estimate(shown, factor=100 if percent else 1, decimals=1 if percent else None, signed=True, unit=unit)


def n_text(series: Series) -> str:
    """``256 items``, or ``exact``."""
    return f"{series.n:,} {series.units}" if series.n else "exact"


def _dips(found: Timeline) -> Section:
    title = "Dip and recovery"
    if "dynamics" in found.missing:
        return Section(id="dips", title=title, command=found.missing["dynamics"])
    rows = [
        [
            dip.curve, dip.label, _stable(dip.label_share), decimal(100 * dip.depth if dip.unit == "share" else dip.depth, 1), decimal(dip.trough_step, 0),
            decimal(dip.recovery_step, 0), estimate(dip.final_gain, factor=100 if dip.unit == "share" else 1, decimals=1, signed=True),
            MISSING if dip.n is None else f"{dip.n:,}",
        ]
        for dip in found.dips
    ]  # fmt: skip
    head = ["curve", "class", "stable", "depth", "trough at step", "recovery at step", "final gain", "n"]
    note = (
        "Stable: share of resampled curves, each for itself, that have the class; below 50 % the class is unstable. Depth and gain in "
        "points for shares. The classes and their tests are those of mechprobe dynamics."
    )
    table = Table(title="Curves", head=head, rows=rows, notes=[note], folded=False)
    return Section(id="dips", title=title, says=dips_sentence(found), tables=[table])


def dips_sentence(found: Timeline) -> str:
    """How many curves have each class."""
    counts = Counter(dip.label for dip in found.dips)
    classes = listing(f"{n} {label}" for label, n in counts.most_common())
    return (
        f"Of {len(found.dips)} curves of scores, by class: {classes}."
        if counts
        else "No curve of scores was classified."
    )


def _stable(share: float) -> str:
    """``92 %``, or ``14 %, unstable``; a dash without resampling."""
    return f"{decimal(100 * share, 0)} %{', unstable' if share < 0.5 else ''}" if isfinite(share) else MISSING


def _values(arm: str, course: ArmTimeline, panels: Sequence[str]) -> Table:
    """The values of an arm's quantities in some panels, one column per checkpoint."""
    rows = []
    for series in (each for each in course.series if each.panel in panels):
        percent = series.unit == "percent"
        values = dict(zip(series.steps, series.values, strict=True))
        cells = [
            estimate(_shown(values.get(step), series), factor=100 if percent else 1, decimals=1 if percent else None)
            for step in (0, *course.steps)
        ]
        name = series.name if series.unit == "plain" else f"{series.name} ({'%' if percent else series.unit})"
        rows.append([name, n_text(series) if series.n or not series.unranked else MISSING, *cells])
    head = ["quantity", "n", "base", *(f"{step:,}" for step in course.steps)]
    notes = [
        f"{each.name} is not compared with others: {each.unranked}."
        for each in course.series
        if each.unranked and each.panel in panels
    ]
    return Table(title=f"Values by step: {arm}", head=head, rows=rows, notes=notes)


def _shown(value: Interval | None, series: Series) -> Sequence[Any] | None:
    """A value with its interval; an exact value alone."""
    return value if value is None or series.n or series.unranked else (value.value,)
