"""The ceilings of a site, and the choice of a site from them."""

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

    The mappings hold the accuracy on each task. The patch gives where the base model is patched (``rising``); else it takes. The
    share is NaN where the gain is not clear of noise (see `gain_of`).
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


def choose_site(shares: Mapping[str, tuple[float, float]], min_share: float) -> tuple[str, bool, str]:
    """Choose the site at which edits can be judged best. The rule is our own.

    The site with the largest smaller share is chosen where that share reaches ``min_share``. Otherwise the shares are cut to
    [0, 1] and the site with the largest sum is chosen, because one high ceiling allows edits of one model to be judged. Where
    the gain is not clear of noise, the deepest site is chosen. Ties go to the first site.

    Args:
        shares: Site → ``(sufficiency_share, necessity_share)``.
        min_share: Share of the gain at which a ceiling counts as high.

    Returns:
        ``(site, able, reason)``; ``able`` says whether both ceilings of the site are high.
    """
    if all(math.isnan(sufficiency) for sufficiency, _ in shares.values()):
        chosen = max(shares, key=lambda site: Site.parse(site).layer)
        reason = (
            "The tuned model's gain over the tasks is not clear of noise, so there is nothing to locate; "
            f"{chosen} is the deepest site."
        )
        return chosen, False, reason
    chosen = max(shares, key=lambda site: min(shares[site]))
    able = min(shares[chosen]) >= min_share
    if not able:
        chosen = max(shares, key=lambda site: sum(min(max(share, 0.0), 1.0) for share in shares[site]))
    sufficiency, necessity = shares[chosen]
    found = f"sufficiency {sufficiency:.0%} and necessity {necessity:.0%} of the gain"
    if able:
        return chosen, True, f"{chosen} has two high ceilings: {found}."
    none = f"No site has both ceilings at {min_share:.0%} of the gain or more."
    if max(sufficiency, necessity) < min_share:
        reason = (
            f"{none} {chosen} comes nearest ({found}); an edit that fails there is not evidence against its features."
        )
        return chosen, False, reason
    judged, other = ("base", "tuned") if sufficiency >= necessity else ("tuned", "base")
    reason = (
        f"{none} {chosen} has one of them ({found}): edits of the {judged} model can be judged there, but an edit of the {other} "
        "model that fails is not evidence against its features."
    )
    return chosen, False, reason
