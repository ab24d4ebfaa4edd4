"""Progress of long work on stderr: one live line on a terminal, otherwise a line every ten seconds."""

import io
import logging
import multiprocessing
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from mechprobe.ranks import is_first

LOG_SECONDS = 10.0
"""Shortest time between two lines where stderr is not a terminal."""
_RATE_SECONDS = 30.0
"""The rate is the mean over this time, so that resumed work, which counts at once, does not distort it for long."""


Advance = Callable[..., None]
"""``advance(n, **fields)`` counts ``n`` more units (1 by default), and shows the fields, such as a loss, in the line."""


_told: set[str] = set()


def tell_once(sentence: str) -> None:
    """Say something on stderr once per command; workers of the command say nothing."""
    if sentence not in _told and is_first() and multiprocessing.parent_process() is None:
        _told.add(sentence)
        logging.getLogger("mechprobe").warning("%s", sentence)


def forget_told() -> None:
    """Begin a new command, which says everything again."""
    _told.clear()


@contextmanager
def progress(
    total: int | float | None,
    description: str,
    *,
    unit: str = "",
    quiet: bool = False,
    stream: io.TextIOBase | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show count, rate, remaining time and memory while the ``with`` block runs.

    Args:
        total: Number of units, or None if it is unknown.
        description: The work in two or three words.
        unit: Name of the unit, in the plural.
        quiet: Whether to show nothing; for all but the first of several processes.
        stream: Where to write; stderr by default.
        clock: Current time in seconds.

    Yields:
        A function ``advance(n, **fields)``.
    """
    meter = Meter(total, unit, clock)
    target = cast("io.TextIOBase", sys.stderr) if stream is None else stream
    if quiet or not is_first():
        yield meter.advance
    elif target.isatty():
        with _live(meter, description, target) as advance:
            yield advance
    else:
        yield _logged(meter, description, target)


class Meter:
    """Counts work, ``done`` of ``total`` units (None if their number is unknown), and describes its progress."""

    def __init__(self, total: int | float | None, unit: str, clock: Callable[[], float]) -> None:
        self.total, self.clock, self._unit = total, clock, unit
        self.done: int | float = 0
        self._fields: Mapping[str, object] = {}
        self._history: deque[tuple[float, int | float]] = deque([(clock(), 0)])

    def advance(self, n: int | float = 1, **fields: object) -> None:
        """Count ``n`` more units; ``fields`` replace those shown before."""
        self.done += n
        self._fields = fields
        now = self.clock()
        if now - self._history[-1][0] >= 1.0:
            self._history.append((now, self.done))
        while len(self._history) > 2 and now - self._history[1][0] > _RATE_SECONDS:
            self._history.popleft()

    @property
    def rate(self) -> float:
        """Units per second over the last half minute; 0 before anything is done."""
        start, before = self._history[0]
        return (self.done - before) / max(self.clock() - start, 1e-9)

    def text(self) -> str:
        """The progress on one line, for example ``120/400 steps  2.5 steps/s  1:52 left  RAM 1.3 GB  loss 0.41``."""
        rate, unit = self.rate, f" {self._unit}" if self._unit else ""
        parts = [f"{self.done:,.0f}{unit}" if self.total is None else f"{self.done:,.0f}/{self.total:,.0f}{unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f}{unit}/s" if rate >= 10 else f"{rate:.2g}{unit}/s")
            if self.total is not None:
                parts.append(f"{_duration(max(self.total - self.done, 0) / rate)} left")
        return "  ".join([*parts, *memory_in_use(), *(_field(name, value) for name, value in self._fields.items())])


def memory_in_use() -> list[str]:
    """Memory of this process, and what torch holds on the GPU if it uses one, as texts."""
    parts = [f"RAM {_size(_resident_bytes())}"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"GPU {_size(torch.cuda.memory_reserved())}")
    return parts


def _resident_bytes() -> int:
    """Resident memory of this process; its peak on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _logged(meter: Meter, description: str, stream: io.TextIOBase) -> Advance:
    last = meter.clock()

    def advance(n: int | float = 1, **fields: object) -> None:
        nonlocal last
        meter.advance(n, **fields)
        if meter.clock() - last >= LOG_SECONDS:
            last = meter.clock()
            stream.write(f"{description}: {meter.text()}\n")
            stream.flush()

    return advance


@contextmanager
def _live(meter: Meter, description: str, stream: io.TextIOBase) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            del task
            return Text(meter.text(), no_wrap=True, overflow="ellipsis")

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), Line())
    with Progress(*columns, console=Console(file=cast("IO[str]", stream)), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(description, total=meter.total)

        def advance(n: int | float = 1, **fields: object) -> None:
            meter.advance(n, **fields)
            bar.update(task, completed=meter.done)

        yield advance


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _field(name: str, value: object) -> str:
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
