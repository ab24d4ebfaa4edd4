"""The page of behaviour and drift: divergence, skill profiles, weights, and what drift goes along with."""

from mechprobe.report.result import Page
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.side import drift_sections


def drift_page(files: RunFiles) -> Page:
    """What the page says; a section whose stage has not run names its command."""
    intro = (
        f"How far every model moved from {files.drift.base or files.base}: in its distributions, its skills and its weights. The questions "
        "are those of arXiv 2512.24063; its formulas are not published, and the definitions here are stated with each number."
    )
    return Page(title="Behaviour and drift", intro=[intro], sections=drift_sections(files))
