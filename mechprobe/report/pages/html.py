"""The pages of a report as HTML; every page is a list of sections in one template."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from mechprobe.report.glossary import TERMS
from mechprobe.report.pages.templates import asset, navigation, render
from mechprobe.report.result import Drawn, FirstScreen, Link, Page, Report, Section, Term

if TYPE_CHECKING:
    from mechprobe.report.figures.drawing import Drawing

_ENDINGS = {"svg": "SVG", "png": "PNG", "pdf": "PDF", "csv": "data"}
"""Ending of a file of a figure → text of its link."""
_WIDTH = re.compile(r'^<svg [^>]*? width="(\d+)"')
_SMALLEST = 0.8
"""Scale down to which a figure shrinks."""


class Shown(NamedTuple):
    """A figure as it stands in a page, and links to its files."""

    markup: Markup
    files: list[Link]
    least: int
    """Pixels of width below which its labels would be too small; its frame scrolls there."""


def shown(drawings: "Mapping[str, Drawing]") -> dict[str, Shown]:
    """Figures as they stand in a page."""
    return {
        name: Shown(
            markup=Markup(drawing.markup),
            files=[Link(text=_ENDINGS[ending], href=_file(name, ending)) for ending in drawing.files],
            least=round(_SMALLEST * int(match[1])) if (match := _WIDTH.search(drawing.markup)) else 0,
        )
        for name, drawing in drawings.items()
    }


def drawn(drawings: "Mapping[str, Drawing]", title_of: Callable[[str], str]) -> list[Drawn]:
    """What ``report.json`` says of every figure."""
    return [
        Drawn(
            name=name,
            alt=". ".join(filter(None, [title_of(name), drawing.numbers])),
            files=[_file(name, ending) for ending in drawing.files],
        )
        for name, drawing in sorted(drawings.items())
    ]


def figure_files(drawings: "Mapping[str, Drawing]") -> dict[str, bytes]:
    """The files of the figures, by their path in the report folder."""
    return {_file(name, ending): data for name, drawing in drawings.items() for ending, data in drawing.files.items()}


def _file(name: str, ending: str) -> str:
    return f"figures/{name}.{ending}"


def index_page(content: Report, figures: Mapping[str, Shown], links: dict[str, bool]) -> str:
    """``index.html``.

    Args:
        content: What the page says.
        figures: Name → figure; a figure that is not there is left out.
        links: Which of the further pages there are.
    """
    return _page(
        content.sections,
        figures,
        here="index.html",
        pages=navigation(links),
        name=content.name,
        title=content.question,
        first=content.first,
        verdict=content.verdict,
        warnings=content.warnings,
        notes=content.notes,
        terms=content.terms,
    )


def further_page(file: str, page: Page, name: str, figures: Mapping[str, Shown], links: dict[str, bool]) -> str:
    """A page beside ``index.html``, of the run ``name``."""
    return _page(
        page.sections,
        figures,
        here=f"{file}.html",
        pages=navigation(links),
        name=name,
        title=page.title,
        intro=page.intro,
    )


def single_page(page: Page, figures: Mapping[str, Shown]) -> str:
    """A page that stands alone."""
    return _page(
        page.sections, figures, here="index.html", pages=[], name="mechprobe", title=page.title, intro=page.intro
    )


def _page(
    sections: Sequence[Section],
    figures: Mapping[str, Shown],
    *,
    first: FirstScreen | None = None,
    terms: Sequence[Term] = (),
    **content: Any,
) -> str:
    """A page of sections; ``terms`` are listed at its end, and every term is explained where it stands."""
    return render(
        "page.html.j2", scripts=(asset("chart.js"),), style=asset("chart.css"), sections=sections, figures=figures, first=first,
        terms=terms, glossary=TERMS, **content,
    )  # fmt: skip
