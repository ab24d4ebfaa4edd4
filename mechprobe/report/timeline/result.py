"""Typed content of ``timeline.json``: every number of the page and of its figures."""

from mechprobe.dynamics.order import Order
from mechprobe.report.config import Axis
from mechprobe.report.timeline.measured import Unit
from mechprobe.results import IntervalNumbers, Number, Result


class Series(Result):
    """One quantity of one arm.

    Attributes:
        panel: Panel of the figure.
        models: Base, where it has a value there, and the checkpoints that have one.
        steps: Their optimizer steps, 0 for base.
        at: Their places on the axis, in steps or tokens.
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
    at: tuple[int, ...]
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
        at: Place of each on the axis, in steps or tokens.
        series: Its quantities.
        panels: The quantities that stand for their panels: where half of their change is reached, and lags, in the unit of the axis.
        everything: The same for all quantities; p-values are adjusted over all their pairs.
    """

    checkpoints: tuple[str, ...]
    steps: tuple[int, ...]
    at: tuple[int, ...]
    series: tuple[Series, ...]
    panels: Order
    everything: Order

    def lacking(self, series: Series) -> list[str]:
        """The checkpoints without a value of the quantity, after the first step at which it has one."""
        return [
            name
            for name, step in zip(self.checkpoints, self.steps, strict=True)
            if step > series.steps[0] and name not in series.models
        ]


class Dip(Result):
    """One row of `mechprobe dynamics`: label, steps and numbers of a curve."""

    curve: str
    label: str
    label_share: Number
    """Share of resampled curves, each for itself, that have the label; NaN without resampling."""
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
        axis: ``steps``, or ``tokens`` where they were asked for and are recorded for every checkpoint.
        axis_note: Why the axis is steps although tokens were asked for; empty otherwise.
        steps: Model → optimizer step, 0 for base; models whose step is unknown are left out.
        tokens: Model → tokens of prompts and responses that its training had read, 0 for base; models without a record are left out.
        arms: Arm → its quantities, for arms whose steps are known and that have two checkpoints or more.
        left_out: Arm → why it has no timeline.
        dips: Curves of `mechprobe dynamics`.
        stages: Stages that were read.
        missing: Stage that was not run → the command that runs it.
        alpha: Level of the intervals and, after Holm's adjustment, of the order.
        draws: Bootstrap draws.
    """

    base: str
    axis: Axis
    axis_note: str
    steps: dict[str, int]
    tokens: dict[str, int]
    arms: dict[str, ArmTimeline]
    left_out: dict[str, str]
    dips: tuple[Dip, ...]
    stages: tuple[str, ...]
    missing: dict[str, str]
    alpha: Number
    draws: int
