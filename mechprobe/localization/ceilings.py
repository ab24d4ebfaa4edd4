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


TOLERANCE = 0.1
"""Share of the gain by which an earlier site may fall short of the best and is still preferred (ours)."""


def choose_site(
    shares: Mapping[str, tuple[float, float]], min_share: float, *, last: str = "", named: bool = False
) -> tuple[str, bool, str]:
    """Choose the site at which edits can be judged best. The rule is our own.

    The earliest site is chosen whose smaller share comes within `TOLERANCE` of the best, where the best reaches ``min_share``.
    Otherwise the shares are cut to [0, 1] and the earliest site within `TOLERANCE` of the largest sum is chosen, because one
    high ceiling allows edits of one model to be judged. Where the gain is not clear of noise, the deepest site is chosen.

    The site behind the last block is left out unless the sites were named: where head and final norm of both models are equal,
    the patch there is the other model by construction.

    Args:
        shares: Site → ``(sufficiency_share, necessity_share)``.
        min_share: Share of the gain at which a ceiling counts as high.
        last: The site behind the last block.
        named: Whether the user named the sites.

    Returns:
        ``(site, able, reason)``; ``able`` says whether both ceilings of the site are high.
    """
    order = sorted(shares, key=lambda site: Site.parse(site).layer)
    left = order if named else [site for site in order if site != last] or order
    chosen, able, reason = _choose({site: shares[site] for site in left}, min_share)
    if chosen == last:
        reason += f" {_AT_LAST}"
    elif not able and last in shares and last not in left and min(shares[last]) >= min_share:
        reason += (
            f" {last}, the last block, has two high ceilings but is not chosen, because the patch there can be the other model by "
            f"construction; to use it all the same, set localize.sites = {order}."
        )
    return chosen, able, reason


_AT_LAST = "It is the last block: where head and final norm of both models are equal, it carries the whole change by construction."


def _choose(shares: Mapping[str, tuple[float, float]], min_share: float) -> tuple[str, bool, str]:
    """The choice among sites that are given from the first block on, see `choose_site`."""
    if all(math.isnan(sufficiency) for sufficiency, _ in shares.values()):
        chosen = list(shares)[-1]
        reason = (
            "The tuned model's gain over the tasks is not clear of noise, so there is nothing to locate; "
            f"{chosen} is the deepest site that was compared."
        )
        return chosen, False, reason
    smaller = {site: min(pair) for site, pair in shares.items()}
    able = max(smaller.values()) >= min_share
    if able:
        chosen = _earliest({site: share for site, share in smaller.items() if share >= min_share})
    else:
        chosen = _earliest({site: sum(min(max(share, 0.0), 1.0) for share in pair) for site, pair in shares.items()})
    return chosen, able, _reason(chosen, shares[chosen], able=able, min_share=min_share)


def _earliest(values: Mapping[str, float]) -> str:
    """The first site within `TOLERANCE` of the largest value."""
    least = max(values.values()) - TOLERANCE
    return next(site for site, value in values.items() if value >= least)


def _reason(chosen: str, shares: tuple[float, float], *, able: bool, min_share: float) -> str:
    """The choice in words."""
    sufficiency, necessity = shares
    found = f"sufficiency {sufficiency:.0%} and necessity {necessity:.0%} of the gain"
    if able:
        return f"{chosen} has two high ceilings: {found}. No earlier site comes within {TOLERANCE:.0%} of the best."
    none = f"No site has both ceilings at {min_share:.0%} of the gain or more."
    if max(sufficiency, necessity) < min_share:
        return (
            f"{none} {chosen} comes nearest ({found}); an edit that fails there is not evidence against its features."
        )
    judged, other = ("base", "tuned") if sufficiency >= necessity else ("tuned", "base")
    return (
        f"{none} {chosen} has one of them ({found}): edits of the {judged} model can be judged there, but an edit of the {other} "
        "model that fails is not evidence against its features."
    )
