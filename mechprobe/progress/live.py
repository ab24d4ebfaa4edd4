"""The lines of running work on a terminal, drawn again four times a second."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Protocol, cast, runtime_checkable

from mechprobe.progress.meter import Meter

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

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
        get_renderable=lambda: _table(works()),
        console=Console(file=cast("IO[str]", stream)),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    live.start(refresh=True)
    return live


def _table(works: Sequence[Meter]) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def line(text: str) -> Text:
        return Text(text, no_wrap=True, overflow="ellipsis")

    table = Table.grid(padding=(0, 1))
    for number, work in enumerate(works):
        inner = number == len(works) - 1
        if work.counted:
            bar = ProgressBar(work.total, min(work.done, work.total or work.done), width=_BAR_WIDTH)
            table.add_row(line(work.description), bar, line(work.text() if inner else work.counts()))
        elif inner:
            table.add_row(line(work.description), "", line(work.text()))
    return table
