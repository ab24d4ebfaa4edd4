"""One piece of work: how much of it is done, how fast it goes, and how that is written on a line."""

import time
from collections import deque
from collections.abc import Callable, Mapping

from mechprobe.progress.memory_use import memory_in_use

_RATE_SECONDS = 30.0
"""The rate is the mean over this time."""

Advance = Callable[..., None]
"""``advance(n, **fields)`` counts ``n`` more units (1 by default), and shows the fields, such as a loss, in the line."""


class Meter:
    """Work of which ``done`` of ``total`` units are done; calling it counts further units.

    Attributes:
        description: The work in two or three words.
        total: Number of units; None if it is unknown.
        unit: Name of the unit, in the plural; empty for work that is not counted.
        done: Units that are done.
        fields: Further values of the last call, such as a loss.
    """

    def __init__(
        self,
        total: int | float | None,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
        *,
        description: str = "",
        counted: bool = True,
    ) -> None:
        self.total, self.unit, self.description, self.counted = total, unit, description, counted
        self.done: int | float = 0
        self.fields: Mapping[str, object] = {}
        self._clock, self._found = clock, 0.0
        self._started = clock()
        self._history: deque[tuple[float, int | float]] = deque([(self._started, 0)])
        self._last: tuple[float, int | float, int | float] = (self._started, 0, 0)

    def __call__(self, n: int | float = 1, **fields: object) -> None:
        """Count ``n`` more units; ``fields`` replace those shown before."""
        self.done += n
        self.fields = fields
        now = self._clock()
        self._last = now, self.done - self._found, n
        if now - self._history[-1][0] >= 1.0:
            self._history.append((now, self.done - self._found))
        while len(self._history) > 2 and now - self._history[1][0] > _RATE_SECONDS:
            self._history.popleft()

    def found(self, n: int | float = 1, **fields: object) -> None:
        """Count ``n`` units that an earlier command did; they take no part in the rate, and before others no time either."""
        self._found += n
        self.done += n
        self.fields = fields
        if self.done == self._found:
            self._history[0] = self._clock(), 0

    @property
    def rate(self) -> float:
        """Units per second over the last half minute; 0 before anything is done."""
        return self._pace()[0]

    @property
    def seconds_left(self) -> float | None:
        """Remaining time at the present rate; None where it is unknown."""
        rate, spent = self._pace()
        return None if self.total is None or rate <= 0 else max((self.total - self.done) / rate - spent, 0.0)

    def _pace(self) -> tuple[float, float]:
        """Units per second, and the seconds that went into the next units already.

        The next units take as long as the last. Only what they take longer lowers the rate, so that the remaining time
        falls while a long unit runs.
        """
        start, before = self._history[0]
        at, count, n = self._last
        if count <= before:
            return 0.0, 0.0
        due, waited = n * (at - start) / (count - before), self._clock() - at
        return (count - before) / max(at - start + max(waited - due, 0.0), 1e-9), min(waited, due)

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return self._clock() - self._started

    def text(self) -> str:
        """The progress on one line, for example ``120/400 steps  2.5 steps/s  1:52 left  RAM 1.3 GB  loss 0.41``."""
        parts = [*self._counts(), *memory_in_use(), *(_field(name, value) for name, value in self.fields.items())]
        return "  ".join(parts)

    def short_text(self) -> str:
        """Description, count and remaining time, for work that contains other work."""
        if not self.counted:
            return self.description
        counts = self._counts()
        return " ".join([self.description, counts[0], *(part for part in counts[1:] if part.endswith("left"))])

    def counts(self) -> str:
        """Count, rate and remaining time, or the time since the work began."""
        return "  ".join(self._counts())

    def _counts(self) -> list[str]:
        if not self.counted:
            return [duration(self.seconds)]
        rate, left, unit = self.rate, self.seconds_left, f" {self.unit}" if self.unit else ""
        parts = [f"{self.done:,.0f}{unit}" if self.total is None else f"{self.done:,.0f}/{self.total:,.0f}{unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f}{unit}/s" if rate >= 10 else f"{rate:.2g}{unit}/s")
        return parts if left is None else [*parts, f"{duration(left)} left"]


def duration(seconds: float) -> str:
    """Seconds as ``m:ss``, or as ``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _field(name: str, value: object) -> str:
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
