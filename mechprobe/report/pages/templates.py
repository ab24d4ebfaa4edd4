"""The jinja environment of the pages, and the filters that make text from models and data harmless."""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files as package_files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mechprobe.formatting import inert
from mechprobe.report.glossary import split_by_terms
from mechprobe.report.pages.theme import theme_style
from mechprobe.report.result import Link, Table

CODE = re.compile(r"`([\w.:/= -]+)`")
"""What stands between backticks in the sentences of a report."""
_NUMBER = re.compile(r"[<>±+−-]?\s?[\d–]")
_BELOW_ZERO = re.compile(r"(?<![^\s(\[])-(?=\d)")
_FIXED = "\u00a0"
_BEFORE, _AFTER = re.compile(r"[(\[“\"/]+$"), re.compile(r"^[,.;:!?)\]”\"/%]+")
"""Signs that stand at a term; a browser would break the line between them and a button."""


def environment() -> Environment:
    """Templates of the report.

    Every value is escaped and `inert`; only `Markup`, which the code of the report makes, is not. An undefined name is an error.
    """
    made = Environment(
        loader=PackageLoader("mechprobe.report"),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "visible": visible, "unbroken": unbroken, "prose": prose, "explained": explained, "word_columns": word_columns,
    }  # fmt: skip
    return made


def render(template: str, *, here: str, scripts: tuple[str, ...] = (), style: str = "", **content: Any) -> str:
    """A page as one file. Its policy allows the scripts that it holds and nothing else.

    Args:
        template: Name of the template.
        here: Address of the page in its navigation.
        scripts: Code that runs at the end of the page, after that of the page itself.
        style: Further style, after that of the page.
        content: What the template shows.
    """
    theme_script, script = asset("theme.js"), "\n".join((asset("page.js"), *scripts))
    hashes = " ".join(
        f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" for code in (theme_script, script)
    )
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}; base-uri 'none'; form-action 'none'"
    return environment().get_template(template).render(
        content, here=here, policy=Markup(policy), style=Markup(theme_style() + asset("page.css") + style),
        theme_script=Markup(theme_script), script=Markup(script),
    )  # fmt: skip


def asset(name: str) -> str:
    """A file of ``assets``."""
    return (package_files("mechprobe.report") / "assets" / name).read_text(encoding="utf-8")


def navigation(links: Mapping[str, bool]) -> list[Link]:
    """The pages of a report, in order; ``links`` says which of the further ones there are."""
    every = {"examples": ("Features by example", "examples.html"), "drift": ("Drift", "drift.html"), "timeline": ("Timeline", "timeline.html"),
             "explorer": ("All features", "features/index.html")}  # fmt: skip
    return [
        Link(text="Report", href="index.html"),
        *(Link(text=every[n][0], href=every[n][1]) for n in every if links.get(n)),
    ]


def harmless(value: Any) -> Any:
    """A value as it is printed: text without control and direction characters; line breaks become spaces."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return inert(re.sub(r"[\n\t\r]+", " ", value))


def prose(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(harmless(part)) if place % 2 else escape(with_minus(harmless(part)))
        for place, part in enumerate(parts)
    )


def with_minus(text: str) -> str:
    """Text whose numbers below 0 have a minus sign in place of the hyphen."""
    return _BELOW_ZERO.sub("−", text)


def explained(text: str) -> Markup:
    """Text in which the first mention of every term of the glossary shows its definition."""
    found, pieces = Markup(""), split_by_terms(text)
    for place, (piece, term) in enumerate(pieces):
        if term is None:
            after = _AFTER.match(piece) if place > 0 else None
            rest = piece[after.end() :] if after else piece
            before = _BEFORE.search(rest) if place + 1 < len(pieces) else None
            found += prose(rest[: before.start()] if before else rest)
            continue
        before = _BEFORE.search(pieces[place - 1][0]) if place and pieces[place - 1][1] is None else None
        after = _AFTER.match(pieces[place + 1][0]) if place + 1 < len(pieces) else None
        # A sign between two terms stands with the first of them.
        if before and place > 1 and before.start() < _signs(pieces[place - 1][0]):
            before = None
        button = Markup(
            '<button type="button" class="term" popovertarget="tip-{0}" aria-describedby="tip-{0}">{1}</button>'
        ).format(term.id, harmless(piece))
        signs = [harmless(sign[0]) if sign else "" for sign in (before, after)]
        found += Markup('<span class="kept">{}{}{}</span>').format(signs[0], button, signs[1]) if any(signs) else button
    return found


def _signs(piece: str) -> int:
    """Number of first characters of a piece that are signs."""
    after = _AFTER.match(piece)
    return after.end() if after else 0


def word_columns(table: Table) -> set[int]:
    """Columns of a table that hold words; the others hold numbers and are set to the right."""
    columns = range(len(table.head))
    return {k for k in columns if any(row[k] and not _NUMBER.match(row[k]) for row in table.rows)}


def visible(token: str) -> str:
    """A token with visible spaces, line breaks, tabs and control characters; an empty one is ∅."""
    return inert(token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", _FIXED)) or "∅"


def unbroken(cell: str) -> str:
    """A cell whose only line break can be before the interval in brackets; longer text can break at every space."""
    cell = with_minus(cell)
    value, bracket, ends = cell.partition(" [")
    return f"{value}{bracket}{ends.replace(' ', _FIXED)}" if bracket and len(cell) < 40 else cell
