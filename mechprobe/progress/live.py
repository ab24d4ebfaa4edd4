"""The lines of running work on a terminal, drawn again four times a second."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Protocol, cast, runtime_checkable

from mechprobe.progress.meter import Meter

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

_BAR_WIDTH = 20


@runtime_checkable
class Stream(Protocol):
    """Where lines are written: stderr, or a file that is like it."""

    def write(self, text: str, /) -> object:
        """Write a text."""
        ...

    def flush(self) -> None:
        """Write it now."""
        ...

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


def can_redraw(stream: Stream) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def live_lines(stream: Stream, works: Callable[[], Sequence[Meter]]) -> "Live":
    """Start to show ``works``, outermost first. What other code writes to the terminal stands above them."""
    from rich.console import Console
    from rich.live import Live

    live = Live(
        get_renderable=lambda: _Lines(works()),
        console=Console(file=cast("IO[str]", stream)),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    live.start(refresh=True)
    return live


class _Lines:
    """The lines of ``works`` in the width of the terminal: what does not fit beside the bar stands below it, and is never cut."""

    def __init__(self, works: Sequence[Meter]) -> None:
        self.works = works

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        width = options.max_width
        inner = self.works[-1:]
        shown = [work for work in self.works if work.counted or work in inner]
        texts = [work.text() if work in inner else work.counts() for work in shown]
        names = max((len(work.description) for work in shown), default=0)
        aligned = names + _BAR_WIDTH + 2 + max(map(len, texts), default=0) <= width
        for work, text in zip(shown, texts, strict=True):
            column = names if aligned else len(work.description)
            fits = column + _BAR_WIDTH + 2 + len(text) <= width
            yield from _beside(work, text, column) if fits else _below(work, text, width)


def _beside(work: Meter, text: str, names: int) -> "Iterator[RenderableType]":
    """Description, bar and text on one line, in columns."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.add_column(width=names)
    table.add_column(width=_BAR_WIDTH)
    table.add_row(_line(work.description), _bar(work), _line(text))
    yield table


def _below(work: Meter, text: str, width: int) -> "Iterator[RenderableType]":
    """Description and bar, and below them the text in as many lines as it needs."""
    from rich.table import Table

    if work.counted:
        table = Table.grid(padding=(0, 1))
        table.add_row(_line(work.description), _bar(work))
        yield table
    else:
        yield _line(work.description)
    line = ""
    for part in text.split("  "):
        if line and 2 + len(line) + 2 + len(part) > width:
            yield _line(f"  {line}")
            line = part
        else:
            line = f"{line}  {part}" if line else part
    yield _line(f"  {line}")


def _bar(work: Meter) -> "RenderableType":
    from rich.progress_bar import ProgressBar

    return ProgressBar(work.total, min(work.done, work.total or work.done), width=_BAR_WIDTH) if work.counted else ""


def _line(text: str) -> "RenderableType":
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")
