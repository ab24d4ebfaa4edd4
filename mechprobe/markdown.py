"""Escaping of foreign text (names of models, tasks and features) in the Markdown that stages write."""

from html import escape


def markdown_cell(value: object) -> str:
    """Escape text to one line that cannot break a Markdown table and contains no HTML."""
    text = escape(str(value), quote=False)
    for mark in ("\\", "`", "*", "_", "[", "]", "|"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
