"""Typed content of ``timeline.json``: every number of the page and of its figures."""

from mechprobe.dynamics.order import Order
from mechprobe.report.timeline.measured import Unit
from mechprobe.results import IntervalNumbers, Number, Result


class Series(Result):
    """One quantity of one arm.

    Attributes:
        panel: Panel of the figure.
        models: Base, where it has a value there, and the checkpoints that have one.
        steps: Their steps, 0 for base.
        values: Their values with 95 % intervals, in the unit of the stage.
        n: Units that are resampled, named ``units``; 0 for a quantity that is known exactly.
        unit: Unit of the values; the page shows shares, whose unit is ``percent``, times 100.
        headline: Whether it stands for its panel.
        unranked: Why it is not compared with others; empty if it is.
    """

    name: str
    panel: str
    models: tuple[str, ...]
    steps: tuple[int, ...]
    values: tuple[IntervalNumbers, ...]
    n: int
    units: str
    unit: Unit
    headline: bool
    unranked: str


class ArmTimeline(Result):
    """One arm.

    Attributes:
        checkpoints: Its checkpoints in order of training.
        steps: Optimizer step of each.
        series: Its quantities.
        panels: The quantities that stand for their panels: steps of half of their change, and lags.
        everything: The same for all quantities; p-values are adjusted over all their pairs.
    """

    checkpoints: tuple[str, ...]
    steps: tuple[int, ...]
    series: tuple[Series, ...]
    panels: Order
    everything: Order


class Dip(Result):
    """One row of `mechprobe dynamics`: label, steps and numbers of a curve."""

    curve: str
    label: str
    depth: Number
    trough_step: Number
    recovery_step: Number | None
    final_gain: IntervalNumbers
    unit: str
    n: int | None


class Timeline(Result):
    """Everything that the timeline page says.

    Attributes:
        base: The model that all arms begin at.
        steps: Model → optimizer step, 0 for base; models whose step is unknown are left out.
        arms: Arm → its quantities, for arms whose steps are known and that have two checkpoints or more.
        left_out: Arm → why it has no timeline.
        dips: Curves of `mechprobe dynamics`.
        stages: Stages that were read.
        missing: Stage that was not run → the command that runs it.
        alpha: Level of the intervals and, after Holm's adjustment, of the order.
        draws: Bootstrap draws.
    """

    base: str
    steps: dict[str, int]
    arms: dict[str, ArmTimeline]
    left_out: dict[str, str]
    dips: tuple[Dip, ...]
    stages: tuple[str, ...]
    missing: dict[str, str]
    alpha: Number
    draws: int
