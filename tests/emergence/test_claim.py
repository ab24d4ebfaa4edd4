"""The claim of arXiv 2604.25011, judged on made-up arms that show it and that do not."""

import numpy as np

from mechprobe.emergence.claim import judge
from mechprobe.emergence.curves import ArmNumbers, measure_curves


def claimed_arm(size: float, reached: list[float], churned: bool, seed: int = 0) -> ArmNumbers:
    """Features whose norms change by about ``size``, with the given share of the change at each checkpoint."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(1, 2, size=300)
    final = base * np.exp(size * rng.normal(size=300))
    norms = np.stack([base + part * (final - base) for part in reached], axis=1)
    if churned:
        norms[:, -1] = base * np.exp(size * rng.normal(size=300))
    decoder = norms[:, :, None] * np.ones((1, 1, 4)) / 4
    return ArmNumbers(norms, decoder, np.ones((300, 3), bool), np.array([0, 0.3, 0.6, 1]), 50, 2 / 3)


def test_the_claim_is_judged_both_ways() -> None:
    quick, slow = claimed_arm(0.8, [0, 0.8, 0.95, 1], False), claimed_arm(0.1, [0, 0.1, 0.2, 1], True, seed=1)
    curves = [measure_curves(numbers, draws=200, seed=(0, place)) for place, numbers in enumerate((quick, slow))]
    as_claimed = judge({"sft": [curves[0]], "rl": [curves[1]]}, ("sft", "rl"))
    reverse = judge({"sft": [curves[1]], "rl": [curves[0]]}, ("sft", "rl"))
    assert as_claimed is not None
    assert reverse is not None
    assert [clause.holds for clause in as_claimed.clauses] == [True] * 4
    assert [clause.holds for clause in reverse.clauses] == [False] * 4
    assert all("the claim shows" in sentence for sentence in as_claimed.sentences)
    assert all("the claim does not show" in sentence for sentence in reverse.sentences)
    assert judge({"rl": [curves[1]]}, ("sft", "rl")) is None


def test_a_word_must_hold_for_every_seed() -> None:
    quick, slow = claimed_arm(0.8, [0, 0.8, 0.95, 1], False), claimed_arm(0.1, [0, 0.1, 0.2, 1], True, seed=1)
    one, other = (measure_curves(numbers, draws=200, seed=(0, 1)) for numbers in (quick, slow))
    claim = judge({"sft": [one, one], "rl": [other, one]}, ("sft", "rl"))
    assert claim is not None
    assert not any(clause.holds for clause in claim.clauses)
