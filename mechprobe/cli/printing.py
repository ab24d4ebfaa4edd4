"""What commands print: numbers with n and interval, where the artifact is, and the next command."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.formatting import inert


def say(text: str = "") -> None:
    """Result on stdout, once for several processes, one line or several; control characters in names have no effect."""
    from mechprobe.ranks import is_first

    if not is_first():
        return
    _show_nothing_else()
    sys.stdout.write("\n".join(map(inert, text.split("\n"))) + "\n")


def say_json(value: Any) -> None:
    """The result as JSON on stdout, once for several processes."""
    from mechprobe.files import dump_json
    from mechprobe.ranks import is_first

    if not is_first():
        return
    _show_nothing_else()
    sys.stdout.write(dump_json(json.loads(json.dumps(value, default=str))))


def _show_nothing_else() -> None:
    """End the live lines of a terminal before results are printed."""
    from mechprobe.progress.display import screen

    screen.hide()


def table_lines(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str], *, corner: str = "") -> list[str]:
    """Left-aligned text table: row label, then one cell a column."""
    width = max([len(corner), *map(len, rows)], default=0)
    widths = [max([len(column), *(len(row.get(column, "")) for row in rows.values())]) for column in columns]
    lines = ["  ".join([corner.ljust(width), *(c.ljust(w) for c, w in zip(columns, widths, strict=True))]).rstrip()]
    for label, row in rows.items():
        cells = [row.get(c, "").ljust(w) for c, w in zip(columns, widths, strict=True)]
        lines.append("  ".join([label.ljust(width), *cells]).rstrip())
    return lines


def note(text: str) -> None:
    """One line about the work on stderr, once for several processes."""
    from mechprobe.progress.display import screen
    from mechprobe.ranks import is_first

    if not is_first():
        return
    if text.startswith("warning: "):
        screen.warn(text.removeprefix("warning: "))
    sys.stderr.write(f"mechprobe: {inert(text)}\n")
    sys.stderr.flush()
