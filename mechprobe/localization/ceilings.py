"""The ceilings of a site: accuracy under whole-residual patching, and its share of the gain between two models."""

import math
from collections.abc import Mapping, Sequence

from mechprobe.errors import ConfigError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.tasks import Task
from mechprobe.interventions.hooks.rewriting import rewriting
from mechprobe.models.load import LanguageModel
from mechprobe.records import Outcome
from mechprobe.statistics import Interval
from mechprobe.types import Site


def patched_outcomes(
    host: LanguageModel, donor: LanguageModel, site: Site, tasks: Sequence[Task], *, batch_size: int = 512
) -> list[Outcome]:
    """Outcomes of ``host`` with its residual at ``site`` replaced by ``donor``'s on the same tokens, at every step.

    Raises:
        ConfigError: The two models differ in width.
    """
    if host.d_model != donor.d_model:
        raise ConfigError(
            f"Models {host.name} (d_model {host.d_model}) and {donor.name} (d_model {donor.d_model}) differ in width, so the "
            "residual of one cannot replace that of the other; compare models of one width."
        )
    siblings = {donor.name: donor.hf}
    with rewriting(host.hf, site, lambda x: x[donor.name], host_name=host.name, siblings=siblings):
        return run_tasks(host, tasks, label=f"{host.name}<-{donor.name}@{site}", batch_size=batch_size)


def gain_share(
    low: Mapping[str, Interval], high: Mapping[str, Interval], patched: Mapping[str, Interval], *, rising: bool
) -> float:
    """Share of the gain from ``low`` to ``high`` that a patch gives or takes, summed over tasks.

    Args:
        low: Task → accuracy of the base model.
        high: Task → accuracy of the tuned model.
        patched: Task → accuracy of the patched model.
        rising: Whether the base model is patched, so that the patch gives; else it takes.

    Returns:
        The share; NaN where the gain is not clear of noise (see `gain_of`).
    """
    total = sum(high[task].value - low[task].value for task in low)
    gain, error = gain_of(low, high)
    if total <= 0 or gain <= 1.96 * error:
        return float("nan")
    start, sign = (low, 1.0) if rising else (high, -1.0)
    return sum(sign * (patched[task].value - start[task].value) for task in low) / total


def gain_of(low: Mapping[str, Interval], high: Mapping[str, Interval]) -> tuple[float, float]:
    """``(gain, standard error)`` of the sum over tasks of high minus low, as for independent proportions.

    One right and one wrong response are added to every proportion (Agresti & Caffo 2000). Without them, a task of one sample
    that is wrong before and right after would have a gain of 1 with no error.
    """
    gain, variance = 0.0, 0.0
    for sign, accuracy in ((-1, low), (1, high)):
        for row in accuracy.values():
            adjusted = (row.value * row.n + 1) / (row.n + 2)
            gain += sign * adjusted
            variance += adjusted * (1 - adjusted) / (row.n + 2)
    return gain, math.sqrt(variance)
