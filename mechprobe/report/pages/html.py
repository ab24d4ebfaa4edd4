"""The pages of a report as HTML; every page is a list of sections in one template."""

from collections.abc import Mapping
from typing import NamedTuple

from markupsafe import Markup

from mechprobe.report.glossary import TERMS
from mechprobe.report.pages.templates import navigation, render
from mechprobe.report.result import Link, Page, Report


class Shown(NamedTuple):
    """A figure as it stands in a page, and links to its files."""

    markup: Markup
    files: list[Link]


def index_page(content: Report, figures: Mapping[str, Shown], links: dict[str, bool]) -> str:
    """``index.html``.

    Args:
        content: What the page says.
        figures: Name → figure; a figure that is not there is left out.
        links: Which of the further pages there are.
    """
    return render(
        "page.html.j2",
        here="index.html",
        pages=navigation(links),
        name=content.name,
        title=content.question,
        first=content.first,
        verdict=content.verdict,
        warnings=content.warnings,
        notes=content.notes,
        sections=content.sections,
        terms=content.terms,
        glossary=content.terms,
        figures=figures,
    )


def further_page(file: str, page: Page, name: str, figures: Mapping[str, Shown], links: dict[str, bool]) -> str:
    """A page beside ``index.html``, of the run ``name``."""
    return _sections_page(page, name, figures, f"{file}.html", navigation(links))


def single_page(page: Page, figures: Mapping[str, Shown]) -> str:
    """A page that stands alone."""
    return _sections_page(page, "mechprobe", figures, "index.html", [])


def _sections_page(page: Page, name: str, figures: Mapping[str, Shown], here: str, pages: list[Link]) -> str:
    return render(
        "page.html.j2",
        here=here,
        pages=pages,
        name=name,
        title=page.title,
        intro=page.intro,
        first=None,
        sections=page.sections,
        terms=[],
        glossary=TERMS,
        figures=figures,
    )
