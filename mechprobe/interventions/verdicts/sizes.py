"""How few features carry the ceiling: shares of the ranking's heads, and the smallest that reaches half and nine tenths.

The share of a head is the pooled change of accuracy that it makes over the change that the whole residual makes on the same
samples, with the interval of `mechprobe.statistics.paired_ratio`. A smallest head reaches a goal with its share. Its interval
runs from the first head whose interval reaches the goal to the first whose interval lies above it; both are our own definitions.
"""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.result_rows import HeadShare, HeadSizes, SmallestHead, UnmeasuredSizes
from mechprobe.interventions.verdicts.effects import MIN_CEILING, Right, measurable
from mechprobe.interventions.verdicts.paired import claimed
from mechprobe.statistics import paired_change, paired_ratio
from mechprobe.types import POOLED

HALF, NINE_TENTHS = 0.5, 0.9
"""Shares of the ceiling whose smallest head is reported."""


def smallest_sets(
    conditions: Sequence[Condition], right: Mapping[str, Right], *, base: str, tuned: str
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
            rights = {size: right[heads[size]] for size in sorted(heads)}
            result[host] = _sizes(rights, right[f"{host}|clean"], right[patch], host=host, sign=sign)
    return result


def _sizes(
    heads: Mapping[int, Right], clean: Right, patched: Right, *, host: str, sign: float
) -> HeadSizes | UnmeasuredSizes:
    ceiling = paired_change(clean[POOLED], patched[POOLED])
    n = ceiling.n
    if not measurable(ceiling, sign=sign):
        small = not claimed(ceiling, sign).value >= MIN_CEILING
        why = (
            f"patching the whole residual changes accuracy by less than {100 * MIN_CEILING:.0f} points in {host}"
            if small
            else f"the interval of the whole-residual patch in {host} includes 0"
        )
        return UnmeasuredSizes(n=n, reason=why)
    shares = [
        HeadShare(size, *paired_ratio(clean[POOLED], right[POOLED], patched[POOLED])[:3])
        for size, right in heads.items()
    ]
    return HeadSizes(
        n=n,
        largest=shares[-1].size,
        shares=shares,
        half=_smallest(shares, HALF),
        nine_tenths=_smallest(shares, NINE_TENTHS),
    )


def _smallest(shares: Sequence[HeadShare], goal: float) -> SmallestHead:
    """The smallest size that reaches a goal by its share, by the upper end and by the lower end of its interval."""
    size, low, high = (
        next((row.size for row in shares if end(row) >= goal), None)
        for end in (lambda row: row.share, lambda row: row.high, lambda row: row.low)
    )
    return SmallestHead(size=size, low=low, high=high)
