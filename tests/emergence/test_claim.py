"""The claim of arXiv 2604.25011, judged on made-up arms that show it and that do not."""

import math

import numpy as np
import pytest
from numpy import ndarray

from mechprobe.emergence.claim import judge
from mechprobe.emergence.curves import ArmNumbers, Curves, measure_curves

PROGRESS = np.array([0, 0.3, 0.6, 1])


def claimed_arm(
    size: float, reached: list[float], churned: bool, seed: int = 0, progress: ndarray = PROGRESS
) -> ArmNumbers:
    """Features whose norms change by about ``size``, with the given share of the change at each checkpoint."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(1, 2, size=300)
    final = base * np.exp(size * rng.normal(size=300))
    norms = np.stack([base + part * (final - base) for part in reached], axis=1)
    if churned:
        norms[:, -1] = base * np.exp(size * rng.normal(size=300))
    decoder = norms[:, :, None] * np.ones((1, 1, 4)) / 4
    return ArmNumbers(norms, decoder, np.ones((300, 3), bool), progress, 50, 2 / 3)


QUICK, SLOW = ([0, 0.8, 0.95, 1], False), ([0, 0.1, 0.2, 1], True)


def runs(kind: str, size: float, course: tuple[list[float], bool], n: int, first: int = 0) -> dict[str, list[Curves]]:
    """Training runs of one kind from ``n`` seeds, in one dictionary."""
    arms = [kind, *(f"{kind}-seed{number}" for number in range(1, n))]
    numbers = [claimed_arm(size, *course, seed=first + place) for place in range(n)]
    return {arm: [measure_curves(each, draws=100, seed=(0, 0))] for arm, each in zip(arms, numbers, strict=True)}


def test_the_claim_is_judged_both_ways() -> None:
    as_claimed = judge({**runs("sft", 0.8, QUICK, 3), **runs("rl", 0.1, SLOW, 3, 10)}, ("sft", "rl"))
    reverse = judge({**runs("sft", 0.1, SLOW, 3), **runs("rl", 0.8, QUICK, 3, 10)}, ("sft", "rl"))
    assert as_claimed is not None
    assert reverse is not None
    assert as_claimed.arms == {"sft": ("sft", "sft-seed1", "sft-seed2"), "rl": ("rl", "rl-seed1", "rl-seed2")}
    assert [clause.holds for clause in as_claimed.clauses] == [True] * 4
    assert [clause.holds for clause in reverse.clauses] == [False] * 4
    assert all("the claim shows" in sentence for sentence in as_claimed.sentences[:2])
    assert all("the claim does not show" in sentence for sentence in reverse.sentences[:2])
    assert as_claimed.sentences[2] == "Training seeds: 3 of sft and 3 of rl."


@pytest.mark.parametrize(("n_sft", "n_rl"), [(1, 1), (2, 3), (3, 2)])
def test_fewer_than_three_training_seeds_a_side_claim_nothing(n_sft: int, n_rl: int) -> None:
    """However large the difference: the features of one dictionary are no replicates of a training run."""
    found = judge({**runs("sft", 0.8, QUICK, n_sft), **runs("rl", 0.1, SLOW, n_rl, 10)}, ("sft", "rl"))
    assert found is not None
    assert [clause.holds for clause in found.clauses] == [None] * 4
    assert found.sentences[0].startswith(f"No claim: there are training seeds {n_sft} of sft and {n_rl} of rl")
    assert all(math.isfinite(clause.differences[0].value) for clause in found.clauses)
    assert all(math.isnan(clause.differences[0].low) == (min(n_sft, n_rl) < 2) for clause in found.clauses)
    assert judge(runs("rl", 0.1, SLOW, 1), ("sft", "rl")) is None


def test_exchangeable_arms_rarely_make_a_claim() -> None:
    """Runs of one kind under two names: each word holds in about 2.5 %; a bootstrap over features gave 62 % on either side."""
    rng = np.random.default_rng(0)
    courses = [claimed_arm(0.3 * np.exp(0.3 * rng.normal()), [0, 0.4, 0.7, 1], True, seed=k) for k in range(60)]
    curves = [measure_curves(each, draws=100, seed=(0, 0)) for each in courses]
    held = []
    for _ in range(300):
        drawn = rng.choice(len(curves), 6, replace=False)
        names = ["sft", "sft-seed1", "sft-seed2", "rl", "rl-seed1", "rl-seed2"]
        found = judge({name: [curves[place]] for name, place in zip(names, drawn, strict=True)}, ("sft", "rl"))
        assert found is not None
        held.append([bool(clause.holds) for clause in found.clauses])
    assert np.mean(held, axis=0).max() <= 0.06


def test_a_word_must_hold_in_the_dictionary_of_every_seed() -> None:
    sft, rl = runs("sft", 0.8, QUICK, 3), runs("rl", 0.1, SLOW, 3, 10)
    other = {
        **{arm: found * 2 for arm, found in sft.items()},
        **{f: [*one, two[0]] for (f, one), two in zip(rl.items(), sft.values(), strict=True)},
    }
    claim = judge(other, ("sft", "rl"))
    assert claim is not None
    assert not any(clause.holds for clause in claim.clauses)


def test_without_steps_early_is_not_judged() -> None:
    """Evenly spaced checkpoints say nothing about time: 300 runs a side could be made early or late by the choice of checkpoints."""
    even = np.full(4, np.nan)
    undated = {
        f"rl{suffix}": [measure_curves(claimed_arm(0.1, *SLOW, seed=10 + place, progress=even), draws=100, seed=(0, 0))]
        for place, suffix in enumerate(("", "-seed1", "-seed2"))
    }
    claim = judge({**runs("sft", 0.8, QUICK, 3), **undated}, ("sft", "rl"))
    assert claim is not None
    assert [clause.holds for clause in claim.clauses] == [None, True, True, True]
    assert claim.sentences[0].startswith("sft is not judged as early (the optimizer step of a checkpoint is unknown)")
    assert "nan" not in " ".join(claim.sentences)
