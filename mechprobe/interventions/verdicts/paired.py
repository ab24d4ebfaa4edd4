"""A main edit beside the whole-residual patch and both clean models, sample by sample."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import Effect, PairedComparison
from mechprobe.interventions.verdicts.effects import Right, claimed, sign_of, with_pooled
from mechprobe.statistics import Interval, paired_change, paired_ratio

OutcomeCodes = Mapping[str, Mapping[str, str]]
"""Condition → task → one code per response: R (right), W (wrong), U (unparsed) or C (cut or unfinished). The draws of a sample
follow each other."""


def where_code(codes: str, letters: str, n_samples: int) -> Bool[np.ndarray, "sample draw"]:
    """Whether each response has one of the codes ``letters``, ``[sample draw]``, on a task with ``n_samples`` samples."""
    return np.array([code in letters for code in codes], dtype=bool).reshape(n_samples, -1 if n_samples else 1)


class ConditionOutcomes(NamedTuple):
    """Which responses of one condition are right, and which are broken: unparsed, cut or unfinished."""

    right: Right
    broken: Right

    @classmethod
    def of(cls, codes: Mapping[str, str], n_samples: Mapping[str, int]) -> "ConditionOutcomes":
        """The outcomes of a condition from its codes by task."""
        right, broken = (
            {task: where_code(text, letters, n_samples[task]) for task, text in codes.items()}
            for letters in ("R", "UC")
        )
        return cls(right, broken)

    def with_pooled(self, held_out: Sequence[str]) -> "ConditionOutcomes":
        """The outcomes with a row ``pooled`` over the held-out tasks."""
        return ConditionOutcomes(with_pooled(self.right, held_out), with_pooled(self.broken, held_out))


class References(NamedTuple):
    """What a main edit of one host is compared with: the clean base and tuned model, the clean host, and the ceiling."""

    base: ConditionOutcomes
    tuned: ConditionOutcomes
    host: ConditionOutcomes
    ceiling: ConditionOutcomes


def references(
    host: str, conditions: Sequence[Condition], outcomes: Mapping[str, ConditionOutcomes], config: InterveneConfig
) -> References:
    """The references of one host among the conditions; ``outcomes`` are by the name of the condition."""
    ceiling = next(c.name for c in conditions if (c.model, c.set_kind) == (host, "ceiling"))
    base, tuned, own = (outcomes[f"{model}|clean"] for model in (config.base, config.tuned, host))
    return References(base, tuned, own, outcomes[ceiling])


def compare(edited: ConditionOutcomes, beside: References, task: str, sign: float) -> PairedComparison:
    """An edit on one task; the effect counts in the claimed direction ``sign``."""
    own, right, whole = beside.host.right[task], edited.right[task], beside.ceiling.right[task]
    clean = (beside.base, beside.tuned)
    return PairedComparison(
        share_interval=Effect(*paired_ratio(own, right, whole)[:3]),
        beyond_ceiling=claimed(paired_change(whole, right), sign),
        broken_excess=_least([paired_change(each.broken[task], edited.broken[task]) for each in clean]),
        below_clean=_least([paired_change(right, each.right[task]) for each in clean]),
    )


def compare_mains(
    conditions: Sequence[Condition], outcomes: Mapping[str, ConditionOutcomes], config: InterveneConfig
) -> dict[str, dict[str, PairedComparison]]:
    """Main edit → task and ``pooled`` → its comparison; ``outcomes`` hold the pooled row."""
    found = {}
    for main in (c for c in conditions if c.set_kind == "selected"):
        edited, beside = outcomes[main.name], references(main.model, conditions, outcomes, config)
        sign = sign_of(main.model, config)
        found[main.name] = {task: compare(edited, beside, task, sign) for task in edited.right}
    return found


def _least(found: Sequence[Interval]) -> Effect:
    """The difference to the clean model from which it differs least."""
    return Effect(*min(found, key=lambda each: (each.low, each.value))[:3])
