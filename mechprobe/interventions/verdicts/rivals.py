"""The selected set against its rivals: does it do more than a few directions of the difference between the models?

Ranks count independent directions of a change over all tokens; the rank of a set is at most its number of features. The rivals
of one host whose rank does not exceed the set's are compared with it, sample by sample, on the pooled tasks. The set *beats* a
rival where the interval of the paired difference is above 0. A rival is *no worse* where it does at least as much, or where the
interval ends below a tenth of the ceiling. The set is better than any rival of up to k directions where it beats every rival of
rank k or less that ran. It is no better than k directions where a rival of rank k is no worse, and worse where that rival beats
it. A rival that takes more from the tuned model than the whole residual does is damage and is not compared. The rule is ours.
"""

from collections.abc import Mapping, Sequence

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result_rows import ConditionResult, Effect
from mechprobe.interventions.rival_rows import Comparison, RivalEffect
from mechprobe.interventions.verdicts.control_effects import points
from mechprobe.interventions.verdicts.effects import Right, claimed, measurable, sign_of
from mechprobe.statistics import paired_change
from mechprobe.types import POOLED

MARGIN = 0.10
"""Share of the ceiling by which the set may exceed a rival that is no worse."""


def compare_rivals(
    conditions: Sequence[Condition],
    right: Mapping[str, Right],
    rows: Sequence[ConditionResult],
    config: InterveneConfig,
    doses: Mapping[str, float],
) -> list[Comparison]:
    """One record per host whose transplant of the selected set has rivals.

    ``right`` holds the outcomes of every condition with the pooled row, ``rows`` the effects, and ``doses`` the chosen doses by
    ``host|rival``.
    """
    by_name = {row.name: row for row in rows}
    found = []
    for main in (c for c in conditions if c.set_kind == "selected" and c.edit == "transplant"):
        own = [c for c in conditions if c.model == main.model and c.set_kind in ("rival", "complement")]
        if not own:
            continue
        sign = sign_of(main.model, config)
        ceiling = next(r for r in rows if r.model == main.model and r.set_kind == "ceiling").accuracy_delta[POOLED]
        able = measurable(ceiling, sign=sign) and right[main.name][POOLED].shape[0] >= config.min_n
        most = claimed(ceiling, sign).value
        rivals = [_rival(c, main, right, by_name, config, most, doses) for c in own]
        found.append(_comparison(main, rivals, claimed(by_name[main.name].accuracy_delta[POOLED], sign), able=able))
    return found


def _rival(
    rival: Condition,
    main: Condition,
    right: Mapping[str, Right],
    by_name: Mapping[str, ConditionResult],
    config: InterveneConfig,
    ceiling: float,
    doses: Mapping[str, float],
) -> RivalEffect:
    sign = sign_of(main.model, config)
    effect = claimed(by_name[rival.name].accuracy_delta[POOLED], sign)
    difference = claimed(paired_change(right[rival.name][POOLED], right[main.name][POOLED]), sign)
    return RivalEffect(
        name=rival.features,
        condition=rival.name,
        rank=rival.rank,
        dose=doses.get(f"{rival.model}|{rival.features}"),
        effect=effect,
        difference=difference,
        beaten=difference.low > 0,
        no_worse=difference.value <= 0 or difference.high < MARGIN * ceiling,
        damages=sign < 0 and effect.low > ceiling,
    )


def _comparison(main: Condition, rivals: Sequence[RivalEffect], effect: Effect, *, able: bool) -> Comparison:
    rank = len(main.ids)
    compared = [rival for rival in rivals if rival.rank is not None and rival.rank <= rank and not rival.damages]
    best = max(compared, key=lambda rival: (rival.effect.value, -(rival.rank or 0)), default=None)
    unbeaten = min((rival.rank or 0 for rival in compared if not rival.beaten), default=None)
    better_than = max((r.rank or 0 for r in compared if unbeaten is None or (r.rank or 0) < unbeaten), default=0)
    no_better = min((rival.rank or 0 for rival in compared if rival.no_worse), default=None)
    found = Comparison(
        model=main.model,
        edit=main.edit,
        features=main.features,
        rank=rank,
        effect=effect,
        rivals=list(rivals),
        best=best.name if best else None,
        better_than=better_than if able and compared else None,
        no_better_than=no_better if able else None,
        verdict="",
        sentence="",
    )
    worse = min((rival.rank or 0 for rival in compared if rival.difference.high < 0), default=None)
    verdict = _verdict(found, worse, able=able)
    sentence = _sentence(found, best, verdict, n_compared=len(compared))
    return found.model_copy(update={"verdict": verdict, "sentence": sentence})


def _verdict(found: Comparison, worse: int | None, *, able: bool) -> str:
    """The comparison in words; ``worse`` is the smallest rank of a rival that beats the set."""
    if found.best is None or not able:
        return ""
    below, above = found.better_than or 0, found.no_better_than
    word = "worse than" if above is not None and worse == above else "no better than"
    if above is not None and (not below or above < below):
        return f"{word} {_directions(above)}"
    better = f"better than any rival of {'up to ' if below > 1 else ''}{_directions(below)}" if below else ""
    if above is not None:
        return f"{better}, {word} {above}"
    return better or "not clearly better than one direction"


def _directions(k: int) -> str:
    return "one direction" if k == 1 else f"{k} directions"


def _sentence(found: Comparison, best: RivalEffect | None, verdict: str, *, n_compared: int) -> str:
    if best is None or not verdict:
        return ""
    dose = "" if best.dose is None else f" at {best.dose:g} times the mean"
    return (
        f"{found.edit} of {found.features} in {found.model} is {verdict}: {points(*found.effect)} points against "
        f"{points(*best.effect)} by the best of {n_compared} rivals of equal or lower rank ({best.name}{dose}), "
        f"difference {points(*best.difference)}."
    )
