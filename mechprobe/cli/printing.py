"""What commands print: numbers with n and interval, where the artifact is, and the next command."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.formatting import inert


def say(text: str = "") -> None:
    """Result on stdout, one line or several; control characters in names have no effect."""
    sys.stdout.write("\n".join(map(inert, text.split("\n"))) + "\n")


def say_json(value: Any) -> None:
    """The result as JSON on stdout."""
    from mechprobe.files import dump_json

    sys.stdout.write(dump_json(json.loads(json.dumps(value, default=str))))


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
    """One line about the work on stderr."""
    sys.stderr.write(f"mechprobe: {inert(text)}\n")
    sys.stderr.flush()
