"""What a figure tells: the numbers behind its marks, and the series to which its parts belong.

A figure function draws with matplotlib and says with `tell` what it drew. `mechprobe.report.figures.drawing` makes the text of
every hover, the text alternative and the source data from it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from mechprobe.formatting import number

GID = "told-"
"""Begin of the gid of artists that belong to a series."""
COLUMNS = ("panel", "series", "name", "at", "value", "low", "high", "n", "unit")
_TENTHS = ("%", "points")


@dataclass(frozen=True)
class Mark:
    """One drawn number: where it is, and what it is."""

    axes: Axes
    series: tuple[tuple[str, str], ...]
    """Kind and name of each."""
    name: str
    place: tuple[float, float]
    """In data coordinates."""
    at: float | None
    """Position on a numeric axis, such as an optimizer step."""
    value: float
    low: float
    high: float
    n: float
    unit: str
    interval: str
    hover: bool
    """Whether a hand can reach the mark; a long line has too many points for that."""
    main: bool
    """Whether the text alternative has the number."""

    @property
    def panel(self) -> str:
        """Title of the panel, on one line."""
        return " ".join(self.axes.get_title(loc="left").split()).replace(r"\$", "$")

    @property
    def row(self) -> list[str | float | None]:
        """The mark as a row of the source data, in the order of `COLUMNS`."""
        numbers = [value if isfinite(value) else None for value in (self.value, self.low, self.high, self.n)]
        return [self.panel, " / ".join(name for _, name in self.series), self.name, self.at, *numbers, self.unit]

    @property
    def label(self) -> str:
        """Names of its series and its own."""
        return ", ".join(name for name in dict.fromkeys([*(name for _, name in self.series), self.name]) if name)

    @property
    def lines(self) -> list[str]:
        """What a hover shows: label, value, interval, n."""
        ends = f"{self.interval} {self._digits(self.low)} to {self._digits(self.high)}" if self._has_ends else ""
        return [line for line in (self.label, self._value, ends, self._size) if line]

    @property
    def text(self) -> str:
        """The same on one line, for the text alternative."""
        ends = f" [{self._digits(self.low)}, {self._digits(self.high)}]" if self._has_ends else ""
        numbers = ", ".join(filter(None, [f"{self._value}{ends}", self._size]))
        return f"{self.label}: {numbers}" if self.label else numbers

    @property
    def _has_ends(self) -> bool:
        return isfinite(self.low) and isfinite(self.high)

    @property
    def _value(self) -> str:
        return f"{self._digits(self.value)}{self.unit and f' {self.unit}'}"

    @property
    def _size(self) -> str:
        return f"n = {self.n:,.0f}" if isfinite(self.n) else ""

    def _digits(self, value: float) -> str:
        if not isfinite(value):
            return "not measured"
        text = f"{value:.1f}" if self.unit in _TENTHS else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "0" if float(text) == 0 else f"−{text[1:]}" if text.startswith("-") else text


@dataclass
class Told:
    """All marks of a figure, and its series in the order of their first mention."""

    marks: list[Mark] = field(default_factory=list)
    series: list[tuple[str, str]] = field(default_factory=list)
    """Kind and name."""


_FOUND: WeakKeyDictionary[Figure, Told] = WeakKeyDictionary()


def told(figure: Figure) -> Told:
    """What the figure tells so far."""
    return _FOUND.setdefault(figure, Told())


def tell(  # noqa: PLR0913 - one call says what one call of matplotlib drew
    axes: Axes,
    series: str | Mapping[str, str],
    artists: Any,
    places: Iterable[Sequence[Any]] = (),
    cells: Iterable[Sequence[Any] | ndarray] = (),
    *,
    names: Sequence[str] = (),
    at: Sequence[Any] | ndarray = (),
    unit: str = "%",
    scale: float | int = 100,
    interval: str = "95 % interval",
    hover: bool = True,
    main: bool | Collection[str] = False,
) -> None:
    """Say which numbers have been drawn, and as part of which series.

    Args:
        axes: The panel.
        series: Name of the series, or kind → name if a part belongs to several, such as ``model`` and ``task``. The reader can hide
            every series; empty for what always stays.
        artists: What was drawn: an artist, a container of matplotlib, or a sequence of these.
        places: Where each number stands, in data coordinates.
        cells: For each number ``[value, low, high, n]``; None is a missing number, and the last three may be left out.
        names: Name of each number, such as its task.
        at: Position of each number on a numeric axis.
        unit: Unit of the numbers after scaling.
        scale: Factor of value, low and high; the default converts shares to percent.
        interval: What low and high are.
        hover: Whether a hand can reach the marks.
        main: Whether the text alternative has these numbers, or the names of those that it has.
    """
    pairs = {"": series} if isinstance(series, str) else series
    belongs = tuple(pair for pair in pairs.items() if pair[1])
    figure = axes.figure
    assert isinstance(figure, Figure)
    found = told(figure)
    found.series += [pair for pair in belongs if pair not in found.series]
    numbers = [str(found.series.index(pair)) for pair in belongs]
    for artist in _artists(artists):
        if numbers:
            artist.set_gid(GID + "-".join(numbers))
    for index, (place, cell) in enumerate(zip(places, cells, strict=True)):
        value, low, high, n = [number(part) for part in [*cell[:4], None, None, None][:4]]
        if not isfinite(value):
            continue
        name = names[index] if names else ""
        position = float(at[index]) if len(at) else None
        chosen = main if isinstance(main, bool) else name in main
        ends = scale * value, scale * low, scale * high
        found.marks.append(
            Mark(
                axes,
                belongs,
                name,
                (float(place[0]), float(place[1])),
                position,
                *ends,
                n,
                unit,
                interval,
                hover,
                chosen,
            )
        )


def tell_matrix(
    axes: Axes, values: Float[ndarray, "row column"], rows: Sequence[str], columns: Sequence[str], *, unit: str = "%"
) -> None:
    """Say which numbers the cells of a matrix show, each at the middle of its cell; the largest is the main one."""
    largest = np.unravel_index(np.nanargmax(values), values.shape) if np.isfinite(values).any() else (-1, -1)
    for row, name in enumerate(rows):
        places = [(column, row) for column in range(len(columns))]
        names = [f"{name}, {column}" for column in columns]
        main = [names[int(largest[1])]] if row == largest[0] else []
        tell(axes, "", (), places, [[value] for value in values[row]], names=names, unit=unit, scale=1, main=main)


def _artists(found: Any) -> Iterable[Artist]:
    if isinstance(found, Artist):
        yield found
    elif found is not None:
        for part in found:
            yield from _artists(part)
