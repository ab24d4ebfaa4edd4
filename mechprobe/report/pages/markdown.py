"""The sections of a page as Markdown."""

import re
from collections.abc import Sequence, Set
from html import unescape

from mechprobe.formatting import markdown_cell
from mechprobe.report.pages.templates import CODE
from mechprobe.report.result import Report, Section, Table

_ESCAPED = re.compile(r"\\([\\`*_\[\]|])")
"""A character that Markdown needs escaped and a terminal does not."""


def report_markdown(report: Report) -> str:
    """The whole report: the first screen, and every section."""
    return "\n".join(_report_lines(report)) + "\n"


def plain_lines(lines: Sequence[str]) -> list[str]:
    """Markdown as text for a terminal: without escapes and figures."""
    return [unescape(_ESCAPED.sub(r"\1", line)) for line in lines if not line.startswith("![")]


def _report_lines(report: Report) -> list[str]:
    first, drawn = report.first, {figure.name for figure in report.figures}
    lines = [
        f"# {markdown_cell(report.name)}",
        "",
        f"**Question.** {_text(report.question)}",
        "",
        f"**Verdict.** {_text(first.sentence)}",
    ]
    for number in first.numbers:
        lines += ["", f"- {_text(number.label)}: **{_text(number.value)}** ({_text('; '.join(number.details))})"]
    lines += ["", f"- Quality gate: **{first.gate.state}** ({_text('; '.join(first.gate.values))})"]
    for text in (*report.warnings, *report.notes):
        lines += ["", f"> {_text(text)}"]
    if first.figure:
        lines += _picture(first.figure.name, first.figure.title, drawn)
    lines += ["", "## In short"]
    for answer in first.answers:
        lines += ["", f"**{answer.question}.** {' '.join(map(_text, answer.sentences))}"]
    lines += ["", f"In the words of the rule: {_text(report.verdict)}"] if report.verdict else []
    for section in report.sections:
        lines += section_lines(section, drawn, "##")
    return lines


def section_lines(section: Section, drawn: Set[str], mark: str = "##") -> list[str]:
    """A section with its parts, whose headings have one more ``#``."""
    lines = ["", f"{mark} {_text(section.title)}{' (untrusted)' if section.untrusted else ''}"]
    lines += ["", _text(section.says)] if section.says else []
    if section.command:
        lines += [
            "",
            f"This stage {'was interrupted' if section.interrupted else 'has not run'}. Run `{section.command}`.",
        ]
    for text in section.paragraphs:
        lines += ["", _text(text)]
    for picture in section.pictures:
        lines += _picture(picture.name, picture.title, drawn)
    for text in section.notes:
        lines += ["", _text(text)]
    for table in section.tables:
        lines += table_lines(table, "" if table.title == section.title else f"{mark}#")
    for part in section.parts:
        lines += section_lines(part, drawn, f"{mark}#")
    return lines


def _picture(name: str, title: str, drawn: Set[str]) -> list[str]:
    return ["", f"![{_text(title)}](figures/{name}.png)"] if name in drawn else []


def table_lines(table: Table, mark: str) -> list[str]:
    """A table with aligned columns, below its title; without a mark, no title."""
    if not table.rows:
        return []
    cells = [[markdown_cell(cell) for cell in row] for row in (table.head, *table.rows)]
    return [
        *(["", f"{mark} {_text(table.title)}"] if mark else []),
        "",
        *_aligned(cells),
        *(line for note in table.notes for line in ("", _text(note))),
    ]


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *rows = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows]


def _text(text: str) -> str:
    """Text that is no markup, with what stands between backticks as code."""
    return "".join(f"`{part}`" if place % 2 else _around(part) for place, part in enumerate(CODE.split(text)))


def _around(part: str) -> str:
    """Escaped text with the spaces at its ends."""
    start, end = " " if part[:1].isspace() else "", " " if part[-1:].isspace() else ""
    return f"{start}{markdown_cell(part)}{end}" if part.strip() else part
