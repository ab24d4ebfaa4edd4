"""The choice of a site from its ceilings."""

import math
from collections.abc import Mapping

from mechprobe.types import Site


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
        return (
            chosen,
            False,
            f"{none} {chosen} comes nearest ({found}); an edit that fails there is no evidence against its features.",
        )
    judged, other = ("base", "tuned") if sufficiency >= necessity else ("tuned", "base")
    reason = (
        f"{none} {chosen} has one of them ({found}): edits of the {judged} model can be judged there, but an edit of the {other} "
        "model that fails is no evidence against its features."
    )
    return chosen, False, reason
