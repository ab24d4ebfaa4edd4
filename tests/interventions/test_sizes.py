"""Smallest sets by hand: heads that reach the ceiling, heads that never do, and hosts without a ceiling."""

import numpy as np
import pytest

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.result_rows import SmallestHead, UnmeasuredSizes
from mechprobe.interventions.verdicts.effects import Right, shares_of_ceiling
from mechprobe.interventions.verdicts.sizes import smallest_sets
from mechprobe.statistics import Interval
from mechprobe.types import POOLED

N = 100


def outcomes(n_right: int) -> Right:
    return {POOLED: np.arange(N)[:, None] < n_right}


def head(size: int, host: str = "base", kind: str = "size") -> Condition:
    name = f"{host}|transplant|first {size}"
    return Condition(name, host, "transplant", f"first {size}", kind, "edit", tuple(range(size)), "rl")


def plan(host: str, rights: dict[int, int], clean: int, patched: int) -> tuple[list[Condition], dict[str, Right]]:
    """Heads of a host by size with their number of right samples."""
    ceiling = Condition(f"{host}|patch|whole residual", host, "patch", "whole residual", "ceiling", "patch")
    conditions = [ceiling, *(head(size, host) for size in rights)]
    right = {f"{host}|clean": outcomes(clean), ceiling.name: outcomes(patched)}
    return conditions, right | {f"{host}|transplant|first {size}": outcomes(k) for size, k in rights.items()}


def test_shares_and_smallest_sizes_by_hand() -> None:
    # clean 20, whole residual 80: heads of 1, 2 and 5 give 10, 36 and 60 of 60
    conditions, right = plan("base", {5: 80, 1: 30, 2: 56}, clean=20, patched=80)
    found = smallest_sets(conditions, right, base="base", tuned="rl")
    assert set(found) == {"base"}
    assert [row[:2] for row in found["base"].shares] == [
        (1, pytest.approx(1 / 6)),
        (2, pytest.approx(0.6)),
        (5, pytest.approx(1.0)),
    ]
    assert all(low <= share <= high for _, share, low, high in found["base"].shares)
    low, high = found["base"].shares[2][2:]
    assert low < 1 < high  # the same samples as the ceiling; a further sample could still differ
    assert found["base"].nine_tenths == SmallestHead(size=5, low=5, high=5)
    assert found["base"].half == SmallestHead(size=2, low=2, high=5)  # the interval of 0.6 of 60 includes half
    assert (found["base"].n, found["base"].largest) == (N, 5)


def test_losses_of_the_tuned_model_count_as_shares() -> None:
    conditions, right = plan("rl", {1: 80, 10: 26}, clean=80, patched=20)
    found = smallest_sets(conditions, right, base="base", tuned="rl")["rl"]
    assert [row[1] for row in found.shares] == [0.0, pytest.approx(0.9)]
    assert found.half == SmallestHead(size=10, low=10, high=10)


def test_what_is_never_reached_is_none() -> None:
    conditions, right = plan("base", {1: 20, 5: 30}, clean=20, patched=80)
    found = smallest_sets(conditions, right, base="base", tuned="rl")["base"]
    assert found.half == found.nine_tenths == SmallestHead(size=None, low=None, high=None)


def test_without_a_ceiling_there_is_a_reason() -> None:
    for patched in (24, 20, 5):  # 4 points, none, and a loss
        conditions, right = plan("base", {1: 20}, clean=20, patched=patched)
        found = smallest_sets(conditions, right, base="base", tuned="rl")["base"]
        assert isinstance(found, UnmeasuredSizes)
        assert found.n == N
        assert "less than 5 points in base" in found.reason


def test_a_ceiling_whose_interval_includes_zero_has_no_shares() -> None:
    """Ten samples gained and four lost: six points, and the interval includes 0."""
    clean, patched = [False] * 90 + [True] * 10, [True] * 10 + [False] * 84 + [True] * 6
    conditions, _ = plan("base", {1: 0}, clean=0, patched=0)
    right = {"base|clean": clean, "base|patch|whole residual": patched, "base|transplant|first 1": patched}
    made = {name: {POOLED: np.array(values)[:, None]} for name, values in right.items()}
    found = smallest_sets(conditions, made, base="base", tuned="rl")["base"]
    assert isinstance(found, UnmeasuredSizes)
    assert found.n == 100
    assert "base includes 0" in found.reason


@pytest.mark.parametrize(
    ("ceiling", "sign", "share"),
    [
        ([0.2, 0.1, 0.3, 100], 1.0, 0.5),
        ([0.2, -0.01, 0.4, 100], 1.0, None),
        ([0.04, 0.01, 0.07, 100], 1.0, None),
        ([0.2, 0.1, 0.3, 100], -1.0, None),
        ([-0.2, -0.3, -0.1, 100], -1.0, -0.5),
        ([-0.2, -0.3, 0.1, 100], -1.0, None),
    ],
)
def test_a_share_is_of_a_ceiling_clear_of_zero(ceiling: list[float | int], sign: float, share: float | None) -> None:
    delta = {"t": Interval(0.1, 0.0, 0.2, 100)}
    assert shares_of_ceiling(delta, {"t": Interval(*ceiling)}, sign=sign) == {"t": share}


def test_intervals_are_near_those_of_a_naive_bootstrap() -> None:
    """With many changed samples, the score interval of a ratio is that of the bootstrap up to a few hundredths."""
    rng = np.random.default_rng(3)
    clean, patched, edited = (rng.random(N) < p for p in (0.2, 0.8, 0.5))
    conditions, _ = plan("base", {3: 0}, clean=0, patched=0)
    right = {"base|clean": clean, "base|patch|whole residual": patched, "base|transplant|first 3": edited}
    found = smallest_sets(conditions, {k: {POOLED: v[:, None]} for k, v in right.items()}, base="base", tuned="rl")
    shares = []
    for _ in range(4000):
        rows = rng.integers(0, N, N)
        shares.append((edited[rows].mean() - clean[rows].mean()) / (patched[rows].mean() - clean[rows].mean()))
    assert found["base"].shares[0][2:] == pytest.approx(np.quantile(shares, [0.025, 0.975]).tolist(), abs=0.04)


def test_a_host_without_transplants_is_left_out() -> None:
    conditions, right = plan("base", {}, clean=20, patched=80)
    assert smallest_sets(conditions, right, base="base", tuned="rl") == {}
