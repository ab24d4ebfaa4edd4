"""The sections on skill profiles, and on what drift goes along with, of the page of behaviour and drift."""

from mechprobe.drift.probe.behaviour_result import NO_FALL
from mechprobe.drift.probe.profile import Norm
from mechprobe.drift.probe.result import CLAIM_NOTE, ProbeResult
from mechprobe.formatting import bracketed, decimal, estimate, listing, p_value, points
from mechprobe.report.result import Picture, Section, Table

LEVEL = 0.05
"""Level at which a correlation is called one."""


def profiles_section(found: ProbeResult | None) -> Section:
    """Scores and drift of every checkpoint, collapses, linear probes and the use of features."""
    title = "Behaviour: skill profiles over checkpoints"
    if found is None:
        return Section(id="profiles", title=title, command="mechprobe probe")
    behaviour = found.behaviour["right"]
    n = ", ".join(f"{skill} {count:,}" for skill, count in behaviour.skills.items())
    scores = Table(
        title="Scores in %, chance-corrected, with 95 % intervals",
        head=["model", *behaviour.skills],
        rows=[
            [name, *(bracketed(score.corrected) for score in row.values())] for name, row in behaviour.profiles.items()
        ],
        notes=[f"n: {n} items."],
        folded=False,
    )
    checkpoints = [(arm, point) for arm, course in behaviour.arms.items() for point in course.points]
    drift = Table(
        title="Distance from base, L1 over skills",
        head=["model", "training done %", "drift", "noise alone", "skills lost", "imbalance", "jaggedness"],
        rows=[
            [
                point.model, f"{100 * point.progress:.0f}", norm_text(point.drift_l1), f"< {point.drift_l1.null:.2f}",
                norm_text(point.lost), norm_text(point.imbalance), norm_text(point.jaggedness),
            ]
            for _, point in checkpoints
        ],
        notes=[
            "Intervals cover at least 95 %; the lower end is 0 where noise alone can give the number. Skills lost: sum over the skills "
            "of how far each is below base. Imbalance: standard deviation of the gains; jaggedness: their mean distance from their mean."
        ],
    )  # fmt: skip
    collapses = [line for course in behaviour.arms.values() for line in course.falls()]
    caption = "Score above chance of every skill over training, with 95 % intervals over items. All arms begin at base."
    first, *more = collapses or [NO_FALL]
    return Section(
        id="profiles",
        title=title,
        says=first,
        paragraphs=[*more, CLAIM_NOTE],
        pictures=[Picture(name="profiles", title="Skill profiles over checkpoints", caption=caption)],
        tables=[scores, drift, *_probes(found)],
    )


def _probes(found: ProbeResult) -> list[Table]:
    """Linear probes and the use of features, where they were measured."""
    tables = []
    if found.linear:
        rows = [
            [item.model, item.site, item.position, item.target, bracketed(item.accuracy), bracketed(item.control), points(item.selectivity), item.held_out]
            for item in found.linear
        ]  # fmt: skip
        head = [
            "model",
            "site",
            "position",
            "target",
            "balanced accuracy %",
            "shuffled labels %",
            "selectivity",
            "held out",
        ]
        tables.append(Table(title="Linear probes of the residual stream", head=head, rows=rows))
    if found.use:
        rows = [
            [item.model, item.skill, f"{100 * item.density:.2g} %", f"{item.n_features:,}", norm_text(item.drift), decimal(item.across), decimal(item.split_half)]
            for item in found.use
        ]  # fmt: skip
        head = ["model", "skill", "density", "active features", "drift of use", "between halves", "base between halves"]
        tables.append(Table(title="Use of crosscoder features", head=head, rows=rows))
    return tables


def together_section(found: ProbeResult | None) -> Section:
    """Drift against every number of divergence and weights, with rank correlations."""
    title = "Together: does behaviour drift along with divergence or weights?"
    if found is None:
        return Section(id="together", title=title, command="mechprobe probe")
    caption = "Every mark is a checkpoint, joined in order of training. Bars: intervals of the drift of at least 95 %."
    pictures = [Picture(name="drift_against", title="Drift against divergence and weights", caption=caption)]
    rows = [
        [item.number, item.arm, "step removed" if item.detrended else "as it is", decimal(item.rho), p_value(item.p), p_value(item.p_holm), str(item.n)]
        for item in found.correlations
    ]  # fmt: skip
    head = ["number", "arm", "step", "Spearman", "p", "p (Holm)", "checkpoints"]
    note = "Permutation p. Everything grows with the step, so the rows with the step removed are the ones to read. Fewer than 6 checkpoints: no claim."
    title_of_rows = "Correlation of drift with each number"
    tables = [Table(title=title_of_rows, head=head, rows=rows, notes=[note], folded=False)] if rows else []
    text = [*found.notes]
    if not any(found.numbers.values()):
        text.append(
            "Neither `mechprobe drift` nor `mechprobe weights` had run when `mechprobe probe` did, so nothing is correlated."
        )
    return Section(id="together", title=title, says=_together(found), paragraphs=text, pictures=pictures, tables=tables)


def _together(found: ProbeResult) -> str:
    """Which numbers the drift goes along with, where the step is removed."""
    tested = [item for item in found.correlations if item.detrended]
    clear = [f"{item.number} in {item.arm}" for item in tested if item.p_holm <= LEVEL]
    if not tested:
        return "What the drift of the profiles goes along with cannot be said: no arm has enough checkpoints, or no other number was measured."
    shown = f"with {listing(clear)}" if clear else "with none of the numbers"
    return f"With the step removed, drift correlates {shown} at p ≤ {LEVEL:g} (Holm over {len(tested)} tests)."


def norm_text(item: Norm) -> str:
    """``0.52 [0.31, 0.72]``."""
    return estimate(item, decimals=2)
