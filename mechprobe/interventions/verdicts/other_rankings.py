"""The selected set beside the sets that other rankings choose by the same rule: which ranking finds the features that do more?"""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import ConditionResult
from mechprobe.interventions.rival_rows import OtherRanking
from mechprobe.interventions.verdicts.control_effects import points
from mechprobe.interventions.verdicts.effects import Right, claimed, sign_of
from mechprobe.statistics import paired_change
from mechprobe.types import POOLED


def compare_rankings(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Sequence[ConditionResult],
    config: InterveneConfig,
) -> list[OtherRanking]:
    """One record per host and other ranking, under the read-out of the verdict.

    ``right`` holds the outcomes of every condition with the pooled row, and ``rows`` the effects.
    """
    effects = {row.name: row.accuracy_delta[POOLED] for row in rows if row.set_kind in ("selected", "compare")}
    found = []
    for main in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        sign = sign_of(main.model, config)
        for other in conditions:
            if other.set_kind != "compare" or (other.model, other.edit) != (main.model, main.edit):
                continue
            if other.readout != main.readout:
                continue
            row = OtherRanking(
                model=main.model,
                edit=main.edit,
                features=other.features,
                n_features=len(other.ids),
                n_selected=len(main.ids),
                effect=claimed(effects[other.name], sign),
                difference=claimed(paired_change(right[other.name][POOLED], right[main.name][POOLED]), sign),
                sentence="",
            )
            found.append(row.model_copy(update={"sentence": _sentence(row, main.features)}))
    return found


def _sentence(row: OtherRanking, selected: str) -> str:
    """Where the other set does more, by the paired interval; empty where it does not."""
    if not row.difference.high < 0:
        return ""
    more = points(-row.difference.value, -row.difference.high, -row.difference.low)
    ranking = row.features.rpartition(" ")[2]
    return (
        f"Another ranking finds features that do more: {row.edit} of {row.features} in {row.model} "
        f"({row.n_features} features) does {more} points more than that of {selected} ({row.n_selected}); "
        f"`mechprobe intervene --ranking {ranking}` judges them."
    )
