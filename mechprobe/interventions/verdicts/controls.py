"""Effects in the claimed direction, beside the ceiling and the controls of the same edit."""

from collections.abc import Sequence

from mechprobe.interventions.condition_result import ConditionResult, Effect
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdict_result import AgainstControls
from mechprobe.statistics import Interval, randomization_p
from mechprobe.types import POOLED


def sign_of(model: str, config: InterveneConfig) -> float:
    """+1 in the base model, where a gain is claimed; −1 in the tuned model, where a loss is claimed."""
    return 1.0 if model == config.base else -1.0


def claimed(change: Interval | Effect, sign: float) -> Effect:
    """A change of accuracy as an effect in the claimed direction."""
    value, low, high = change[:3]
    return Effect(value, low, high) if sign > 0 else Effect(0.0 - value, 0.0 - high, 0.0 - low)  # 0 keeps no minus sign


def clean_gaps(rows: Sequence[ConditionResult], tasks: Sequence[str], config: InterveneConfig) -> dict[str, float]:
    """Task → accuracy of the clean tuned model minus that of the clean base, with the pooled row."""
    by_name = {row.name: row.accuracy for row in rows if row.set_kind == "clean"}
    base, tuned = (by_name[f"{model}|clean"] for model in (config.base, config.tuned))
    return {task: tuned[task].value - base[task].value for task in [*tasks, POOLED]}


def against_controls(
    host: str, edit: str, rows: Sequence[ConditionResult], task: str, effect: float, sign: float
) -> AgainstControls:
    """An effect on one task beside the ceiling and the controls of its edit, with randomization p-values.

    Args:
        host: The edited model.
        edit: Text of the edit.
        rows: All conditions.
        task: A task, or ``pooled``.
        effect: In the claimed direction.
        sign: Of the claimed direction, see `sign_of`.
    """
    in_host = [row for row in rows if row.model == host]
    same = [row for row in in_host if row.edit == edit]
    ceiling = next(claimed(row.accuracy_delta[task], sign) for row in in_host if row.set_kind == "ceiling")
    random, turned = (
        [claimed(row.accuracy_delta[task], sign).value for row in same if row.set_kind == kind]
        for kind in ("random", "shuffled")
    )
    vectors = [row for row in in_host if row.edit == "vector"]
    return AgainstControls(
        ceiling=ceiling.value,
        ceiling_interval=ceiling,
        random_mean=_mean(random),
        random_max=max(random, default=None),
        n_random=len(random),
        p_random=randomization_p(effect, random),
        equal_norm_mean=_mean(turned),
        equal_norm_max=max(turned, default=None),
        n_equal_norm=len(turned),
        p_equal_norm=randomization_p(effect, turned),
        one_vector={row.features: claimed(row.accuracy_delta[task], sign).value for row in vectors},
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
