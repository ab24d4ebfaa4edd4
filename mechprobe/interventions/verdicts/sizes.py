"""How few features carry the ceiling: shares of the ranking's heads, and the smallest that reaches half and nine tenths.

With e the change that a head of the ranking makes on the pooled samples and c the change that the whole residual makes
there, the share is Σ e / Σ c. Intervals are percentile bootstraps over samples, heads and ceiling resampled together
(ours); the smallest head is looked up anew in every draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechprobe.interventions.conditions.conditions import Condition
from mechprobe.interventions.verdicts.effects import MIN_CEILING, Right
from mechprobe.types import POOLED

GOALS = {"50%": 0.5, "90%": 0.9}
"""Shares of the ceiling whose smallest head is reported."""


def smallest_sets(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    *,
    base: str,
    tuned: str,
    seed: int,
    draws: int = 2000,
) -> dict[str, dict[str, Any]]:
    """Per host, the share of the pooled ceiling that every measured head carries, and the smallest that reaches each goal.

    Args:
        conditions: As planned; the heads are the ``size`` conditions and the selected set, all transplants.
        right: Condition name → outcomes, with the pooled row.
        base: The model in which a gain is claimed.
        tuned: The model in which a loss is.
        seed: Of the bootstrap.
        draws: Bootstrap draws.

    Returns:
        Host → ``shares`` (``[size, share, low, high]`` each, rising), ``largest`` (the largest size measured), ``n``,
        and for every goal ``{"size", "low", "high"}``: None stands for "not reached by the largest", in the size and in
        either end of its interval. Where the ceiling is below 5 points in the claimed direction or not clear of 0, ``reason`` says so and
        nothing else is there. A host whose transplants were not run is left out.
    """
    result: dict[str, dict[str, Any]] = {}
    for host, sign in ((base, 1.0), (tuned, -1.0)):
        heads = sorted(
            {
                len(c.ids): c.name
                for c in conditions
                if c.model == host and c.edit == "transplant" and c.set_kind in ("size", "selected") and c.ids
            }.items()
        )
        if heads:
            result[host] = _of_host(heads, conditions, right, host, sign, np.random.default_rng([seed, 2]), draws)
    return result


def _of_host(
    heads: Sequence[tuple[int, str]],
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    host: str,
    sign: float,
    rng: np.random.Generator,
    draws: int,
) -> dict[str, Any]:
    clean = _pooled(right, f"{host}|clean")
    ceiling = _pooled(right, next(c.name for c in conditions if c.model == host and c.set_kind == "ceiling")) - clean
    changes = np.stack([_pooled(right, name) - clean for _, name in heads])
    n = len(clean)
    if n == 0 or sign * ceiling.mean() < MIN_CEILING:
        return {"n": n, "reason": f"the whole residual moves less than {100 * MIN_CEILING:.0f} points in {host}"}
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    totals = counts @ ceiling
    if np.quantile(sign * totals, 0.025) <= 0:
        return {"n": n, "reason": f"what the whole residual moves in {host} is not clear of 0"}
    used = sign * totals > 0  # a draw whose ceiling vanishes has no share
    shares = (counts[used] @ changes.T) / totals[used, None]
    sizes = [size for size, _ in heads]
    measured = changes.sum(axis=1) / ceiling.sum()
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return {
        "n": n,
        "largest": sizes[-1],
        "shares": [
            [size, float(v), float(a), float(b)] for size, v, a, b in zip(sizes, measured, low, high, strict=True)
        ],
        **{goal: _smallest(sizes, measured >= level, shares >= level) for goal, level in GOALS.items()},
    }


def _pooled(right: Mapping[str, Right], name: str) -> Float[np.ndarray, " sample"]:
    return np.asarray(right[name][POOLED], dtype=np.float64)


def _smallest(
    sizes: Sequence[int], reached: Bool[np.ndarray, " size"], in_draws: Bool[np.ndarray, "draw size"]
) -> dict[str, int | None]:
    """The smallest size that reaches a goal, with the 95 % interval over draws; None for "not reached"."""
    never = len(sizes)
    first = np.sort(np.where(in_draws.any(axis=1), in_draws.argmax(axis=1), never))
    ends = [first[int(np.floor(0.025 * (len(first) - 1)))], first[int(np.ceil(0.975 * (len(first) - 1)))]]
    own = int(reached.argmax()) if reached.any() else never
    low, high = (None if place == never else sizes[int(place)] for place in ends)
    return {"size": None if own == never else sizes[own], "low": low, "high": high}
