"""What a figure tells: the numbers behind its marks, and the series to which its parts belong.

A figure function draws with matplotlib and says with `tell` what it drew. `mechprobe.report.figures.drawing` makes the text of
every hover, the text alternative and the source data from it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any
from weakref import WeakKeyDictionary

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
    series: tuple[str, ...]
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
    hover: bool
    """Whether a hand can reach the mark; a long line has too many points for that."""
    main: bool
    """Whether the text alternative has the number."""

    @property
    def panel(self) -> str:
        """Title of the panel, on one line."""
        return " ".join(self.axes.get_title(loc="left").split())

    @property
    def row(self) -> list[str | float | None]:
        """The mark as a row of the source data, in the order of `COLUMNS`."""
        numbers = [value if isfinite(value) else None for value in (self.value, self.low, self.high, self.n)]
        return [self.panel, " / ".join(self.series), self.name, self.at, *numbers, self.unit]

    @property
    def text(self) -> str:
        """What a hover shows."""
        names = dict.fromkeys([*self.series, self.name])
        return f"{', '.join(name for name in names if name)}: {self.numbers}"

    @property
    def numbers(self) -> str:
        """Value, 95 % interval and n."""
        unit = "" if not self.unit else f" {self.unit}"
        found = f"{self._digits(self.value)}{unit}"
        if isfinite(self.low) and isfinite(self.high):
            found += f" [{self._digits(self.low)}, {self._digits(self.high)}]"
        return found + (f", n = {self.n:,.0f}" if isfinite(self.n) else "")

    def _digits(self, value: float) -> str:
        if not isfinite(value):
            return "not measured"
        text = f"{value:.1f}" if self.unit in _TENTHS else f"{value:.3g}"
        return "0" if float(text) == 0 else text


@dataclass
class Told:
    """All marks of a figure, and its series in the order of their first mention."""

    marks: list[Mark]
    series: list[str]


_FOUND: WeakKeyDictionary[Figure, Told] = WeakKeyDictionary()


def told(figure: Figure) -> Told:
    """What the figure tells so far."""
    return _FOUND.setdefault(figure, Told([], []))


def tell(  # noqa: PLR0913 - one call says what one call of matplotlib drew
    axes: Axes,
    series: str | Sequence[str],
    artists: Any,
    places: Iterable[tuple[float, float]] = (),
    cells: Sequence[Sequence[Any]] = (),
    *,
    names: Sequence[str] = (),
    at: Sequence[float] = (),
    unit: str = "%",
    scale: float = 100,
    hover: bool = True,
    main: bool = False,
) -> None:
    """Say which numbers have been drawn, and as part of which series.

    Args:
        axes: The panel.
        series: Name of the series, or names if a part belongs to several, such as a task and a kind of control. The reader can hide
            every series; empty for what always stays.
        artists: What was drawn: an artist, a container of matplotlib, or a sequence of these.
        places: Where each number stands, in data coordinates.
        cells: For each number ``[value, low, high, n]``; None is a missing number, and the last three may be left out.
        names: Name of each number, such as its task.
        at: Position of each number on a numeric axis.
        unit: Unit of the numbers after scaling.
        scale: Factor of value, low and high; the default converts shares to percent.
        hover: Whether a hand can reach the marks.
        main: Whether the text alternative has these numbers.
    """
    belongs = tuple(name for name in ((series,) if isinstance(series, str) else series) if name)
    figure = axes.figure
    assert isinstance(figure, Figure)
    found = told(figure)
    found.series += [name for name in dict.fromkeys(belongs) if name not in found.series]
    numbers = [str(found.series.index(name)) for name in belongs]
    for artist in _artists(artists):
        if numbers:
            artist.set_gid(GID + "-".join(numbers))
    for index, (place, cell) in enumerate(zip(places, cells, strict=True)):
        value, low, high, n = [number(part) for part in [*cell[:4], None, None, None][:4]]
        if not isfinite(value):
            continue
        name = names[index] if names else ""
        position = float(at[index]) if len(at) else None
        ends = scale * value, scale * low, scale * high
        found.marks.append(
            Mark(axes, belongs, name, (float(place[0]), float(place[1])), position, *ends, n, unit, hover, main)
        )


def tell_matrix(
    axes: Axes, values: Float[ndarray, "row column"], rows: Sequence[str], columns: Sequence[str], *, unit: str = "%"
) -> None:
    """Say which numbers the cells of a matrix show, each at the middle of its cell."""
    for row, name in enumerate(rows):
        places = [(column, row) for column in range(len(columns))]
        names = [f"{name}, {column}" for column in columns]
        tell(axes, "", (), places, [[value] for value in values[row]], names=names, unit=unit, scale=1)


def _artists(found: Any) -> Iterable[Artist]:
    if isinstance(found, Artist):
        yield found
    elif found is not None:
        for part in found:
            yield from _artists(part)
