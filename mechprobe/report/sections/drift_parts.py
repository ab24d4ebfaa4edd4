"""The parts of the page of behaviour and drift, and its numbers as text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mechprobe.drift.weights.result import AgainstNull
from mechprobe.formatting import MISSING, estimate
from mechprobe.statistics import Interval


class Table(NamedTuple):
    """A table below its title, with notes after it; a folded one is closed until it is clicked."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()
    folded: bool = False


class Picture(NamedTuple):
    """A figure by its name in `mechprobe.report.figures.drift.draw_drift`."""

    name: str
    alt: str
    caption: str


class Section(NamedTuple):
    """A section; ``command`` makes its stage where that has not run, and is empty otherwise. ``notes`` follow the figures."""

    title: str
    command: str
    paragraphs: list[str]
    pictures: list[Picture]
    tables: list[Table]
    notes: Sequence[str] = ()


def absent(title: str, command: str) -> Section:
    """The section of a stage that has not run."""
    return Section(title, command, [], [], [])


def interval_text(item: Interval) -> str:
    """``0.153 [0.128, 0.178]``."""
    return estimate(item)


def null_text(item: AgainstNull | None, factor: int = 1) -> str:
    """A number with the range of its null, see `AgainstNull.text`."""
    return MISSING if item is None else item.text(factor)


def digits(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}" if math.isfinite(value) else MISSING
