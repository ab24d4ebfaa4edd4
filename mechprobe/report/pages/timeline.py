"""The page of the timeline: every quantity on one axis of optimizer steps or tokens, and what moved first."""

from collections.abc import Mapping

from mechprobe.report.pages.templates import environment
from mechprobe.report.sections.timeline import timeline_sections
from mechprobe.report.timeline.result import Timeline

INTRO = (
    "Every quantity that this run measured along post-training, on one axis, arm by arm, and which of them moved "
    "first. The formulas are ours; mechprobe.dynamics.order states them.",
    "One training run of each kind describes these runs, and no kind of training: another seed could differ as much. What comes "
    "first need not be the cause. A quantity that grows with the square of another, as KL does for small changes, reaches half of its "
    "change later for that reason alone.",
)


def timeline_page(name: str, found: Timeline, pictures: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        name: Name of the run.
        found: The timeline.
        pictures: Name → base64 of a figure; figures that are not there are left out.
    """
    sections, shown = timeline_sections(found), dict(pictures)
    return environment().get_template("sections.html.j2").render(
        name=name, title="Timeline", intro=INTRO, sections=sections, figures=shown
    )  # fmt: skip
