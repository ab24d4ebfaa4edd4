"""Sets of dictionaries of other seeds: a permuted decoder is found whole, an unrelated one is found at chance."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.features.validation.matching import match_features
from mechprobe.interventions.dictionaries import comparison
from mechprobe.interventions.dictionaries.comparison import Judged, found_again, partners_in, sentence
from mechprobe.interventions.dictionaries.result import DictionarySeeds, FoundAgain, SeedDictionary
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.result_rows import Effect, Verdict
from mechprobe.interventions.rival_rows import Comparison


def again(
    first: np.ndarray, second: np.ndarray, own: list[int], other: list[int], *, dead: tuple[int, ...] = ()
) -> FoundAgain:
    """`found_again` for two decoders, with dead features in the second."""
    alive = np.ones(len(second), dtype=bool)
    alive[list(dead)] = False
    matching = match_features(first, second, alive=(np.ones(len(first), dtype=bool), alive))
    return found_again(own, other, matching, alive=alive, seed=1)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_a_permuted_decoder_has_the_whole_set_again(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    first, order = rng.normal(size=(40, 16)), rng.permutation(40)
    own = rng.choice(40, size, replace=False).tolist()
    partners = [int(np.flatnonzero(order == feature)[0]) for feature in own]
    found = again(first, first[order], own, partners)
    assert found.live.value == found.anywhere.value == found.in_set.value == 1.0
    assert found.in_set_chance == pytest.approx(size / 40)
    assert found.p_anywhere == 1.0  # every random set is found whole, too
    shifted = again(first, first[order], own, [feature for feature in range(40) if feature not in partners][:size])
    assert shifted.in_set.value == 0.0
    assert shifted.anywhere.value == 1.0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_rotated_noise_has_nothing_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(60, 96))
    rotation, _ = np.linalg.qr(rng.normal(size=(96, 96)))
    found = again(first, first @ rotation, list(range(10)), list(range(10)))
    assert found.live.value == found.anywhere.value == found.in_set.value == found.in_set_chance == 0.0
    assert found.p_in_set == 1.0


def test_a_random_set_is_found_at_the_stated_chance() -> None:
    """The mean over random sets in the place of the other set is ``in_set_chance``, also with dead features."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(50, 32))
    second = np.where(np.arange(50)[:, None] < 30, first, rng.normal(size=(50, 32)))  # 30 of 50 are found again
    own, dead = list(range(20, 40)), tuple(range(45, 50))
    shares, tails = [], []
    for _ in range(400):
        other = rng.choice(45, 15, replace=False).tolist()
        found = again(first, second, own, other, dead=dead)
        shares.append(found.in_set.value)
        tails.append(found.p_in_set)
    assert found.anywhere.value == 0.5
    assert found.in_set_chance == pytest.approx(10 * 15 / (45 * 20))
    assert np.mean(shares) == pytest.approx(found.in_set_chance, abs=0.01)
    assert np.mean(np.array(tails) <= 0.05) <= 0.05 + 0.02


def test_an_empty_set_has_no_share() -> None:
    decoder = np.eye(5)
    assert np.isnan(again(decoder, decoder, [], [1]).in_set.value)
    none = again(decoder, decoder, [1, 2], [])
    assert none.in_set.value == none.in_set_chance == 0.0
    assert none.anywhere.value == 1.0
    assert np.isnan(none.p_in_set)


def test_partners_are_counted_one_by_one() -> None:
    matching = match_features(np.eye(4), np.eye(4)[[1, 0, 3, 2]])
    assert partners_in([0, 1, 2], [1, 3], matching).tolist() == [True, False, True]


def judged(verdict: str, effect: float, rivals: str = "") -> Judged:
    """Interventions with one main edit, of which only the pooled verdict is read."""
    row = Verdict.model_construct(
        model="base",
        edit="transplant",
        task="pooled",
        n=64,
        verdict=verdict,
        readout="joint",
        effect=Effect(effect, effect - 0.1, effect + 0.1),
    )
    found = [Comparison.model_construct(model="base", edit="transplant", verdict=rivals)] if rivals else []
    return Judged(InterventionResults.model_construct(verdicts=[row], comparisons=found, features=[1]))


def test_verdicts_and_effects_are_compared_with_the_first() -> None:
    rows = [
        judged("supported", 0.5, "no better than one direction"),
        judged("refuted", 0.1, "no better than one direction"),
        Judged(None, "No feature is above the threshold"),
        judged("supported", 0.3, "better than any rival of up to 5 directions"),
    ]
    own = rows[0].verdict("base", "transplant")
    assert own is not None
    found = comparison._over_seeds(own, rows)
    assert found.verdicts == ["supported", "refuted", "no verdict: No feature is above the threshold", "supported"]
    assert (found.n_same, found.n_same_rivals) == (2, 2)
    assert (found.median, found.smallest, found.largest) == (0.3, 0.1, 0.5)
    assert np.isnan(found.effects[2].value)
    assert found.readouts == ["joint", "joint", None, "joint"]
    whole = DictionarySeeds(
        site="resid_post.1",
        rule_of_features="top50",
        min_cosine=0.7,
        features=[1, 2],
        found_by=[3, 0],
        dictionaries=[
            SeedDictionary(seed=seed, fingerprint="", trusted=True, n_live=9, n_features=2) for seed in (4, 5, 6, 7)
        ],
        found_again=[again(np.eye(9), np.eye(9), [1, 2], other) for other in ([1, 2], [], [1, 3])],
        edits=[found],
    )
    text = sentence(whole)
    assert text.startswith(
        "The sets of seeds 5, 6 and 7 have 0 to 100 % of the 2 features of seed 4 again, by chance 0.0 to"
    )
    assert "transplant in base 2 of 4 (seed 5 refuted, seed 6 no verdict: No feature is above the threshold)" in text
    assert (
        "2 of 4 against rivals (seed 6 not compared, seed 7 better than any rival of up to 5 directions), +30 [+10, +50]"
        in text
    )
