"""Changes of the harness' metrics against the clean host, and against random sets."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.evals.result import HarnessRun
from mechprobe.interventions.conditions.condition import Condition, condition_row
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.harness.result import HarnessCondition, MetricCell
from mechprobe.statistics import Interval, paired_bootstrap, randomization_p

Found = Mapping[str, HarnessRun]
"""Condition → what `mechprobe.evals.harness.HarnessTasks.run` returns."""
Metrics = dict[str, dict[str, MetricCell]]


def harness_conditions(
    conditions: Sequence[Condition], found: Found, change_of: Mapping[str, float], config: InterveneConfig
) -> list[HarnessCondition]:
    """One record per condition, in order.

    ``change_of`` maps conditions to relative changes. The clean condition of a model is named ``<model>|clean``.
    """
    metrics = {c.name: _against_clean(c, found, config.seed) for c in conditions}
    higher = found[conditions[0].name].higher_is_better
    for main in (c for c in conditions if c.set_kind == "selected"):
        draws = [
            metrics[c.name]
            for c in conditions
            if c.set_kind == "random" and (c.model, c.edit) == (main.model, main.edit)
        ]
        metrics[main.name] = _against_random(metrics[main.name], draws, higher, gain=main.model == config.base)
    return [HarnessCondition(**dict(condition_row(c, config, change_of)), metrics=metrics[c.name]) for c in conditions]


def _against_clean(condition: Condition, found: Found, seed: int) -> Metrics:
    """The metrics of a condition with their changes against the clean host."""
    mine, host = found[condition.name], found[f"{condition.model}|clean"]
    result: Metrics = {}
    for task, cells in mine.metrics.items():
        result[task] = {}
        for key, cell in cells.items():
            change = None if condition.how == "clean" else _change(mine, host, task, key, seed)
            result[task][key] = MetricCell(value=cell.value, stderr=cell.stderr, n=mine.n.get(task), change=change)
    return result


def _change(mine: HarnessRun, host: HarnessRun, task: str, key: str, seed: int) -> Interval | None:
    """Change of one metric, with a paired bootstrap interval where it is a mean over documents."""
    value, start = (side.metrics[task][key].value for side in (mine, host))
    if value is None or start is None:
        return None
    after, before = (side.values.get(task, {}).get(key) for side in (mine, host))
    if after and before and _is_mean(after, value) and _is_mean(before, start):
        return paired_bootstrap(before, after, seed=seed)
    nan = float("nan")  # a group has no documents of its own
    return Interval(value - start, nan, nan, mine.n.get(task, 0))


def _is_mean(values: Sequence[float], aggregated: float) -> bool:
    """Whether the harness averaged a metric over documents; only then is a paired difference defined."""
    return abs(sum(values) / len(values) - aggregated) <= 1e-9 * max(1.0, abs(aggregated))


def _against_random(
    metrics: Metrics, draws: Sequence[Metrics], higher: Mapping[str, Mapping[str, bool | None]], *, gain: bool
) -> Metrics:
    """The metrics of a selected set beside the changes of its random sets; ``gain`` says whether a gain is claimed."""
    result = {task: dict(cells) for task, cells in metrics.items()}
    for task, cells in metrics.items():
        for key, cell in cells.items():
            known = [change.value for draw in draws if (change := draw[task][key].change) is not None]
            if cell.change is None or not known:
                continue
            update: dict[str, Any] = {"random_mean": sum(known) / len(known), "n_random": len(known)}
            better = higher.get(task, {}).get(key.partition(",")[0])
            if better is not None:
                side = "greater" if gain == better else "less"
                update["p_random"] = randomization_p(cell.change.value, known, side=side)
            result[task][key] = cell.model_copy(update=update)
    return result
