"""The page of the timeline: every quantity on one axis of optimizer steps or tokens, and what moved first."""

from mechprobe.report.result import Page
from mechprobe.report.sections.timeline import timeline_sections
from mechprobe.report.timeline.result import Timeline

INTRO = (
    "Every quantity that this run measured along post-training, on one axis, arm by arm, and which of them moved "
    "first. The formulas are ours; mechprobe.dynamics.order states them.",
    "One training run of each kind describes these runs, and no kind of training: another seed could differ as much. What comes "
    "first need not be the cause. A quantity that grows with the square of another, as KL does for small changes, reaches half of its "
    "change later for that reason alone.",
)


def timeline_page(found: Timeline) -> Page:
    """What the page says."""
    return Page(title="Timeline", intro=list(INTRO), sections=timeline_sections(found))
