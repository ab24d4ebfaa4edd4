"""The page of behaviour and drift: divergence, skill profiles, weights, and what drift goes along with."""

from collections.abc import Mapping

from mechprobe.report.pages.templates import environment
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.divergence import divergence_section
from mechprobe.report.sections.profiles import profiles_section, together_section
from mechprobe.report.sections.weights import weights_section


def drift_page(files: RunFiles, pictures: Mapping[str, str]) -> str | None:
    """The page as HTML; None if none of its stages has run.

    Args:
        files: The files of the run.
        pictures: Name → base64 of a figure; figures that are not there are left out.
    """
    found = files.drift
    if not found.folders:
        return None
    sections = [
        divergence_section(found.divergence), profiles_section(found.probe), weights_section(found.weights), together_section(found.probe),
    ]  # fmt: skip
    intro = (
        f"How far every model moved from {found.base or files.base}: in its distributions, its skills and its weights. The questions are "
        "those of arXiv 2512.24063; its formulas are not published, and the definitions here are stated with each number."
    )
    return environment().get_template("sections.html.j2").render(
        name=files.name, title="Behaviour and drift", intro=[intro], sections=sections, figures=dict(pictures)
    )  # fmt: skip
