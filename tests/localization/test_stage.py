"""The choice of a site from the ceilings of all sites, and shares of a gain from synthetic accuracies."""

import math

import pytest

from mechprobe.localization.ceilings import choose_site, gain_of, gain_share
from mechprobe.statistics import Interval, wilson_interval


def rows(**shares: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Shares of sites that are named ``r0``, ``r1`` and so on."""
    return {name.replace("r", "resid_post."): pair for name, pair in shares.items()}


def test_both_ceilings_come_first() -> None:
    site, able, reason = choose_site(rows(r0=(1.0, 0.1), r1=(0.6, 0.7), r2=(1.0, 0.5)), 0.5)
    assert (site, able) == ("resid_post.1", True)
    assert all(fact in reason for fact in ("resid_post.1", "sufficiency 60%", "necessity 70%"))


@pytest.mark.parametrize(("shares", "judged"), [((1.0, -0.06), "base"), ((-0.06, 1.0), "tuned")])
def test_one_high_ceiling_is_better_than_none(shares: tuple[float, float], judged: str) -> None:
    # As in a model whose every weight was trained: its last blocks produce the gain from any residual.
    site, able, reason = choose_site(rows(r0=(-0.05, -0.06), r1=(0.16, -0.06), r2=shares), 0.5)
    assert (site, able) == ("resid_post.2", False)
    assert f"edits of the {judged} model can be judged there" in reason


def test_of_one_ceiling_each_the_site_with_more_of_the_other() -> None:
    assert choose_site(rows(r0=(0.0, 0.0), r1=(0.99, 0.32), r2=(1.02, 0.1)), 0.5)[:2] == ("resid_post.1", False)


def test_where_none_is_high_it_says_so() -> None:
    site, able, reason = choose_site(rows(r0=(0.0, 0.1), r1=(0.3, 0.2)), 0.5)
    assert (site, able) == ("resid_post.1", False)
    assert "evidence against its features" in reason
    assert "can be judged" not in reason


def test_without_a_gain_it_is_the_deepest_site() -> None:
    nothing = (math.nan, math.nan)
    site, able, reason = choose_site(rows(r2=nothing, r10=nothing, r0=nothing), 0.5)
    assert (site, able) == ("resid_post.10", False)
    assert "nothing to locate" in reason


def accuracy(right: int, n: int) -> dict[str, Interval]:
    return {"sum": wilson_interval(right, n)}


def test_shares_by_hand() -> None:
    low, high = accuracy(10, 40), accuracy(30, 40)
    assert gain_share(low, high, accuracy(20, 40), rising=True) == pytest.approx(0.5)
    assert gain_share(low, high, accuracy(10, 40), rising=False) == pytest.approx(1.0)
    gain, error = gain_of(low, high)
    assert gain == pytest.approx(20 / 42)
    assert error == pytest.approx(math.sqrt(2 * (11 / 42) * (31 / 42) / 42))


@pytest.mark.parametrize(("n", "clear"), [(1, False), (2, False), (8, True)])
def test_a_task_of_one_sample_has_no_gain_to_share(n: int, clear: bool) -> None:
    """Every sample is wrong before and right after, but so few samples still have a standard error."""
    share = gain_share(accuracy(0, n), accuracy(n, n), accuracy(n, n), rising=True)
    assert (share == 1.0) if clear else math.isnan(share)


def test_no_gain_has_no_shares() -> None:
    for before, after in ((20, 20), (21, 20), (20, 22)):
        assert math.isnan(gain_share(accuracy(before, 40), accuracy(after, 40), accuracy(20, 40), rising=True))


def test_the_earliest_site_within_the_tolerance_comes_first() -> None:
    shares = rows(r3=(0.2, 0.3), r14=(0.97, 0.96), r20=(1.0, 0.99), r27=(1.0, 1.0))
    site, able, reason = choose_site(shares, 0.5, last="resid_post.27", named=True)
    assert (site, able) == ("resid_post.14", True)
    assert "No earlier site comes within 10% of the best" in reason
    assert choose_site(rows(r3=(0.8, 0.89), r14=(0.97, 0.96)), 0.5)[0] == "resid_post.14"
    assert choose_site(rows(r3=(0.48, 0.48), r14=(0.52, 0.52)), 0.5)[:2] == ("resid_post.14", True)


def test_the_last_block_is_chosen_only_where_the_sites_are_named() -> None:
    shares = rows(r0=(0.04, -0.06), r1=(0.35, -0.08), r2=(1.0, 1.0))
    site, able, reason = choose_site(shares, 0.5, last="resid_post.2")
    assert (site, able) == ("resid_post.1", False)
    assert "localize.sites = ['resid_post.0', 'resid_post.1', 'resid_post.2']" in reason
    site, able, reason = choose_site(shares, 0.5, last="resid_post.2", named=True)
    assert (site, able) == ("resid_post.2", True)
    assert "by construction" in reason


def test_the_last_block_is_not_mentioned_where_another_site_has_both() -> None:
    shares = rows(r0=(0.0, 0.0), r1=(0.7, 0.7), r2=(1.0, 1.0))
    site, able, reason = choose_site(shares, 0.5, last="resid_post.2")
    assert (site, able) == ("resid_post.1", True)
    assert "resid_post.2" not in reason


def test_a_model_of_one_block_has_no_other_site() -> None:
    site, able, reason = choose_site(rows(r0=(1.0, 1.0)), 0.5, last="resid_post.0")
    assert (site, able) == ("resid_post.0", True)
    assert "by construction" in reason


def test_without_a_gain_it_is_the_deepest_site_before_the_last() -> None:
    nothing = (math.nan, math.nan)
    assert choose_site(rows(r0=nothing, r1=nothing, r2=nothing), 0.5, last="resid_post.2")[0] == "resid_post.1"
