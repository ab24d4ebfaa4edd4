"""The jinja environment of the pages, and the filters that make text from models and data harmless."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mechprobe.markdown import markdown_cell


def environment() -> Environment:
    """Templates of the report. HTML is escaped automatically, and an undefined name is an error."""
    made = Environment(
        loader=PackageLoader("mechprobe.report"),
        autoescape=select_autoescape(["html", "html.j2"], default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"cell": markdown_cell, "opacity": opacity, "visible": visible, "inert": inert}
    return made


def opacity(activation: float, largest: float) -> str:
    """Background opacity of a token, from 0 to 0.85.

    Example:
        >>> opacity(2.0, 4.0), opacity(0.0, 4.0)
        ('0.48', '0')
    """
    if not largest or activation <= 0:
        return "0"
    return f"{0.12 + 0.73 * min(1.0, activation / largest):.2f}"


def visible(token: str) -> str:
    r"""A token with visible spaces, line breaks, tabs and control characters.

    Example:
        >>> visible("a\n"), visible("")
        ('a⏎', '∅')
    """
    return inert(token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "\u00a0")) or "∅"


def inert(text: str) -> str:
    r"""Text with its control and direction characters spelled out, so that they have no effect.

    Example:
        >>> inert("\x1b[31m")
        '\\x1b[31m'
    """
    return "".join(char if char.isprintable() or char == "\u00a0" else f"\\x{ord(char):02x}" for char in text)
