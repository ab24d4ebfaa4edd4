"""How few features carry the ceiling: shares of the ranking's heads, and the smallest that reaches half and nine tenths.

With e the change that a head of the ranking makes on each pooled sample, and c the change that the whole residual makes there,
the share of the head is Σ e / Σ c; both are changes of the share of right responses. Intervals are percentile bootstraps over samples that resample heads and ceiling together;
the smallest head is determined in every draw. Both are our own definitions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.result_rows import HeadShare, HeadSizes, SmallestHead, UnmeasuredSizes
from mechprobe.interventions.verdicts.effects import MIN_CEILING, Right
from mechprobe.types import POOLED

HALF, NINE_TENTHS = 0.5, 0.9
"""Shares of the ceiling whose smallest head is reported."""


def smallest_sets(
    conditions: Sequence[Condition], right: Mapping[str, Right], *, base: str, tuned: str, seed: int, draws: int = 2000
) -> dict[str, HeadSizes | UnmeasuredSizes]:
    """Per host, the share of the pooled ceiling that every measured head carries, and the smallest that reaches each goal.

    Heads are the ``size`` conditions and the selected set, all transplants; ``right`` holds the outcomes with the pooled row. A
    gain is claimed in ``base`` and a loss in ``tuned``.

    Returns:
        Host → sizes, or why they cannot be measured: the ceiling is below 5 points in the claimed direction, or its interval
        includes 0. A host whose transplants did not run is left out.
    """
    result: dict[str, HeadSizes | UnmeasuredSizes] = {}
    for host, sign in ((base, 1.0), (tuned, -1.0)):
        heads = {
            len(c.ids): c.name
            for c in conditions
            if c.model == host and c.edit == "transplant" and c.set_kind in ("size", "selected") and c.ids
        }
        if heads:
            patch = next(c.name for c in conditions if c.model == host and c.set_kind == "ceiling")
            clean = _pooled(right, f"{host}|clean")
            changes = np.stack([_pooled(right, heads[size]) - clean for size in sorted(heads)])
            ceiling = _pooled(right, patch) - clean
            rng = np.random.default_rng([seed, 2])
            result[host] = _sizes(sorted(heads), changes, ceiling, host=host, sign=sign, rng=rng, draws=draws)
    return result


def _sizes(
    sizes: Sequence[int],
    changes: Float[np.ndarray, "size sample"],
    ceiling: Float[np.ndarray, " sample"],
    *,
    host: str,
    sign: float,
    rng: np.random.Generator,
    draws: int,
) -> HeadSizes | UnmeasuredSizes:
    n = len(ceiling)
    if n == 0 or sign * ceiling.mean() < MIN_CEILING:
        why = f"patching the whole residual changes accuracy by less than {100 * MIN_CEILING:.0f} points in {host}"
        return UnmeasuredSizes(n=n, reason=why)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    totals = counts @ ceiling
    if np.quantile(sign * totals, 0.025) <= 0:
        return UnmeasuredSizes(n=n, reason=f"the interval of the whole-residual patch in {host} includes 0")
    used = sign * totals > 0  # a draw whose ceiling vanishes has no share
    shares = (counts[used] @ changes.T) / totals[used, None]
    measured = changes.sum(axis=1) / ceiling.sum()
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return HeadSizes(
        n=n,
        largest=sizes[-1],
        shares=[
            HeadShare(k, float(v), float(a), float(b)) for k, v, a, b in zip(sizes, measured, low, high, strict=True)
        ],
        half=_smallest(sizes, measured >= HALF, shares >= HALF),
        nine_tenths=_smallest(sizes, measured >= NINE_TENTHS, shares >= NINE_TENTHS),
    )


def _pooled(right: Mapping[str, Right], name: str) -> Float[np.ndarray, " sample"]:
    """Share of right responses to every pooled sample."""
    return right[name][POOLED].mean(axis=1, dtype=np.float64)


def _smallest(
    sizes: Sequence[int], reached: Bool[np.ndarray, " size"], in_draws: Bool[np.ndarray, "draw size"]
) -> SmallestHead:
    """The smallest size that reaches a goal, with the 95 % interval over draws."""
    never = len(sizes)
    first = np.sort(np.where(in_draws.any(axis=1), in_draws.argmax(axis=1), never))
    ends = [first[int(np.floor(0.025 * (len(first) - 1)))], first[int(np.ceil(0.975 * (len(first) - 1)))]]
    own = int(reached.argmax()) if reached.any() else never
    low, high = (None if place == never else sizes[int(place)] for place in ends)
    return SmallestHead(size=None if own == never else sizes[own], low=low, high=high)
