"""Text of other people's making (names of models, tasks, features) in the Markdown that stages write."""

from html import escape


def markdown_cell(value: object) -> str:
    """Text on one line that cannot break a Markdown table or carry HTML."""
    text = escape(str(value), quote=False)
    for mark in ("\\", "`", "*", "_", "[", "]", "|"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
