"""The jinja environment of the pages, and the filters that make text from models and data harmless."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mechprobe.formatting import inert, markdown_cell


def environment() -> Environment:
    """Templates of the report. HTML is escaped automatically, and an undefined name is an error."""
    made = Environment(
        loader=PackageLoader("mechprobe.report"),
        autoescape=select_autoescape(["html", "html.j2"], default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "cell": markdown_cell,
        "opacity": opacity,
        "visible": visible,
        "inert": inert,
        "unbroken": unbroken,
    }
    return made


def opacity(activation: float, largest: float) -> str:
    """Background opacity of a token, 0 without activation and else 0.12 to 0.85."""
    return f"{0.12 + 0.73 * min(1.0, activation / largest):.2f}" if largest and activation > 0 else "0"


def visible(token: str) -> str:
    """A token with visible spaces, line breaks, tabs and control characters; an empty one is ∅."""
    return inert(token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "\u00a0")) or "∅"


def unbroken(cell: str) -> str:
    """A cell whose only line break can be before the interval in brackets; longer text can break at every space."""
    value, bracket, ends = cell.partition(" [")
    return f"{value}{bracket}{ends.replace(' ', _FIXED)}" if bracket else cell


_FIXED = "\u00a0"
