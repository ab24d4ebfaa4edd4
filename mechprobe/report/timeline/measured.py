"""A quantity of the timeline as its source measured it: values of models, and joint bootstrap draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.order import Course
from mechprobe.statistics import Interval

N_DRAWS, SEED = 1000, 0
N_PSEUDO = 4
"""Items with a coin flip for each model whose noise is added to a share, as in `mechprobe.drift.probe.scores`: few equal items do
not prove that all are."""
Unit = Literal["percent", "tokens", "nats", "plain"]
"""Unit of a quantity; ``percent`` is that of shares."""


@dataclass(frozen=True)
class Measured:
    """One quantity.

    Attributes:
        name: Its name, unique among the quantities of an arm.
        panel: Panel of the figure.
        points: Model → value with its interval; base is among them where the quantity has a value there.
        draws: Model → its value in each bootstrap draw; row i of all quantities with the same samples comes from the same draw. Empty for
            a quantity without draws.
        n: Units that are resampled, named ``units``; 0 for a quantity that is known exactly.
        unit: Unit of the values; shares, whose unit is ``percent``, are shown times 100.
        headline: Whether it stands for its panel in the comparison of panels.
        unranked: Why it is not compared with others; empty if it is.
        arm: The only arm that has it; empty for all.
    """

    name: str
    panel: str
    points: Mapping[str, Interval]
    draws: Mapping[str, Float[ndarray, " draw"]] = field(default_factory=dict)
    n: int = 0
    units: str = ""
    unit: Unit = "plain"
    headline: bool = False
    unranked: str = ""
    arm: str = ""

    def course(self, base: str, models: Sequence[str], steps: Mapping[str, int]) -> Course | None:
        """The quantity at base and at those of the models that have it; None if base has no value, or no model has one."""
        shown = [model for model in models if model in self.points]
        if self.unranked or base not in self.points or not shown:
            return None
        columns = [base, *shown]
        values = np.array([self.points[model].value for model in columns])
        if not np.isfinite(values).all():
            return None
        draws = np.stack([self.draws[model] for model in columns], axis=1) if self.draws else None
        return Course(self.name, np.array([steps[model] for model in shown], dtype=np.float64), values, draws, self.n)


def item_weights(name: str, n: int) -> Float[ndarray, "draw item"]:
    """How often each of n samples counts in each draw, the same whenever ``name`` is the same."""
    rng = np.random.default_rng([SEED, *name.encode()])
    return rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS).astype(np.float64)


def item_draws(name: str, values: Float[ndarray, "model item"], *, share: bool) -> Float[ndarray, "model draw"]:
    """The mean of every model in each draw of the items called ``name``; shares have the noise of `N_PSEUDO` further items."""
    n = values.shape[1]
    mean = values.mean(axis=1, keepdims=True)
    noise = values @ item_weights(name, n).T / n - mean
    if not share:
        return mean + noise
    rng = np.random.default_rng([SEED + 1, *name.encode()])
    flips = rng.binomial(N_PSEUDO, 0.5, noise.shape) - N_PSEUDO / 2
    return mean + (noise * n + flips) / (n + N_PSEUDO)


def of_items(
    name: str,
    panel: str,
    sample: str,
    rows: Mapping[str, Float[ndarray, " item"]],
    *,
    unit: Unit,
    points: Mapping[str, Interval] | None = None,
) -> Measured:
    """The mean over items of every model; ``sample`` names the items, and quantities of one sample share their draws."""
    drawn = item_draws(sample, np.stack(list(rows.values())), share=unit == "percent")
    n = len(next(iter(rows.values())))
    draws = dict(zip(rows, drawn, strict=True)) if n > 1 else {}
    found = points or {m: around(float(row.mean()), draws.get(m), n) for m, row in rows.items()}
    return Measured(
        name, panel, found, draws, n, "items", unit, unranked="" if draws else "one item has no interval"
    )  # fmt: skip


def mean_of(parts: Sequence[Measured], name: str, **changes: object) -> Measured:
    """The mean of several quantities over different items, whose draws are independent."""
    models = [model for model in parts[0].points if all(model in part.points for part in parts)]
    draws = {model: np.mean([part.draws[model] for part in parts], axis=0) for model in models}
    n = sum(part.n for part in parts)
    points = {
        model: around(float(np.mean([part.points[model].value for part in parts])), draws[model], n) for model in models
    }
    return Measured(name, parts[0].panel, points, draws, n, parts[0].units, parts[0].unit, **changes)  # type: ignore[arg-type]


def around(value: float, draws: Float[ndarray, " draw"] | None, n: int) -> Interval:
    """A value with the middle 95 % of its draws."""
    if draws is None:
        return Interval(value, float("nan"), float("nan"), n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, min(value, float(low)), max(value, float(high)), n)
