"""Labels and numbers: the published tables, planted curves, items, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import mechprobe as mp
from mechprobe.dynamics import DipResult, DynamicsConfig, adjust_labels, dip_and_recovery
from mechprobe.dynamics.labels import LABELS, MEANING
from mechprobe.errors import InputError
from tests.dynamics.curves import QUICK, item_curves, published

FAST = DynamicsConfig(**QUICK)
EXPECTED = {
    ("4B", "MATH500"): ("dip_recover_exceed", 20, 7.9),
    ("4B", "LCB"): ("dip_recover_exceed", 40, 6.1),
    ("4B", "IFEval"): ("dip_recover_to_base", 20, 16.2),
    ("4B", "AIME24"): ("monotone_gain", 10, 2.0),
    ("1.7B", "GPQA"): ("dip_no_recovery", 80, 8.1),
    ("1.7B", "MMLU-Pro"): ("dip_recover_exceed", 20, 5.7),
}


@pytest.mark.parametrize(("model", "benchmark"), EXPECTED)
def test_published_tables(model: str, benchmark: str) -> None:
    label, trough, depth = EXPECTED[model, benchmark]
    found = dip_and_recovery(**published(model, benchmark), config=FAST)
    assert (found.label, found.trough_step) == (label, trough)
    assert found.depth == pytest.approx(depth)
    assert found.unit == "percent"


def test_numbers_of_a_published_curve_by_hand() -> None:
    found = mp.dynamics.dip_and_recovery(**published("4B", "LCB"), config=FAST)
    assert (found.recovery_step, found.peak_step) == (320, 640)
    assert found.final_gain == pytest.approx(3.8)
    assert found.peak_gain == pytest.approx(3.8)
    assert found.recovered_share == pytest.approx(9.9 / 6.1)
    assert found.late_decline == pytest.approx(0)
    smooth = (1533 * 0.206 + 2) / 1537
    assert found.errors[0] == pytest.approx(100 * (smooth * (1 - smooth) / 1537) ** 0.5)


@pytest.mark.parametrize(
    ("model", "benchmark", "dips", "recovers"),
    [
        ("4B", "MATH500", True, True),
        ("4B", "LCB", True, True),
        ("4B", "IFEval", True, True),
        ("1.7B", "GPQA", True, False),
    ],
)
def test_classes_are_stable_when_the_published_scores_are_drawn_again(
    model: str, benchmark: str, dips: bool, recovers: bool
) -> None:
    found = dip_and_recovery(**published(model, benchmark), config=DynamicsConfig(draws=1000, resamples=200))
    back = {"dip_recover_exceed", "dip_recover_to_base"}
    same = sum(
        count
        for label, count in found.resampled_labels.items()
        if (label in back) == recovers and label.startswith("dip") == dips
    )
    assert same / 200 >= 0.93  # 0.95 within the noise of 200 draws


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        ([50, 50, 50, 50, 50, 50], "no_change"),
        ([52, 55, 60, 64, 66, 70], "monotone_gain"),
        ([45, 30, 40, 60, 68, 70], "dip_recover_exceed"),
        ([45, 30, 40, 50, 50, 50], "dip_recover_to_base"),
        ([40, 20, 30, 42, 42, 42], "dip_partial"),
        ([40, 20, 24, 25, 24, 26], "dip_no_recovery"),
        ([55, 65, 70, 68, 60, 52], "overfit_decline"),
        ([55, 65, 70, 60, 45, 30], "overfit_decline"),
        ([48, 45, 40, 35, 30, 25], "unresolved"),
    ],
)
def test_every_label(scores: list[float], label: str) -> None:
    steps = [10, 20, 40, 80, 160, 320]
    found = dip_and_recovery(steps, scores, 50, n=1000, config=FAST)
    assert found.label == label
    assert dip_and_recovery(steps, np.array(scores) / 100, 0.5, n=1000, config=FAST).label == label
    assert dip_and_recovery(steps, scores, 50, se=1.6, config=FAST).label == label
    assert (found.recovery_step is None) == (label not in ("dip_recover_exceed", "dip_recover_to_base"))


def test_labels_are_the_eight_and_each_has_a_meaning() -> None:
    assert len(LABELS) == 8
    assert set(MEANING) == set(LABELS)


def test_items_share_their_difficulty_so_that_smaller_dips_are_found() -> None:
    curve = item_curves([0.9, 0.9, 0.76, 0.9, 0.9], 600, seed=3)
    paired = dip_and_recovery([1, 2, 4, 8], curve[1:], curve[0], config=FAST)
    alone = dip_and_recovery([1, 2, 4, 8], curve[1:].mean(axis=1), curve[0].mean(), n=600, config=FAST)
    assert paired.items
    assert paired.unit == "share"
    assert paired.label == "dip_recover_to_base"
    assert max(paired.errors) < min(alone.errors)
    assert paired.tests.dip_p <= alone.tests.dip_p + 0.01


def test_noise_of_items_adds_up_to_the_variances_of_paired_differences() -> None:
    curve = item_curves([0.9, 0.7, 0.8, 0.5], 2000, seed=1)
    found = dip_and_recovery([1, 2, 3], curve[1:], curve[0], config=FAST)
    differences = curve[1:] - curve[0]
    expected = differences.std(axis=1, ddof=1) / 2000**0.5
    assert np.hypot(found.errors[0], found.errors[1:]) == pytest.approx(expected, rel=0.05)


def test_several_responses_to_each_item() -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.2, 0.9, 200)
    right = np.stack([rng.random((200, 4)) < (chance * mean)[:, None] for mean in (1, 1, 0.7, 1, 1)])
    found = dip_and_recovery([1, 2, 3, 4], right[1:], right[0], config=FAST)
    assert (found.n, found.responses, found.trough_step) == (200, 4, 2)
    assert found.recovered
    assert found.base_score == pytest.approx(right[0].mean())


def test_flat_items_are_seldom_a_dip() -> None:
    config = DynamicsConfig(draws=1000, resamples=0)
    curves = [item_curves([0.8] * 6, 120, seed) for seed in range(20)]
    dips = sum(dip_and_recovery(range(1, 6), curve[1:], curve[0], config=config).dipped for curve in curves)
    assert dips <= 3  # 20 × 0.05 and two standard errors


def test_a_dip_of_cut_responses_is_told_apart() -> None:
    steps, scores, cut = [10, 20, 40, 80], [60, 30, 57, 60], [2, 3, 51, 6, 2]
    found = dip_and_recovery(steps, scores, 60, n=500, cut=cut, config=FAST)
    assert found.dipped
    assert found.cut_explains
    assert found.words == "dip_recover_to_base (cut responses)"
    assert found.cut is not None
    assert found.cut.ended_scores[2] == pytest.approx(30 / 0.49)
    real = dip_and_recovery(steps, scores, 60, n=500, cut=[2, 3, 2, 2, 2], config=FAST)
    assert real.cut_explains is False
    assert (
        dip_and_recovery(steps, [62, 64, 66, 68], 60, n=500, cut=[*cut[:2], 3, 3, 2], config=FAST).cut_explains is None
    )


def test_cut_items_count_as_wrong_and_are_left_out_among_the_ended() -> None:
    right = item_curves([0.9, 0.9, 0.9, 0.9], 400, seed=5)
    cut = np.zeros_like(right)
    cut[2, :200] = 1
    right = right * (1 - cut)
    found = dip_and_recovery([1, 2, 3], right[1:], right[0], cut=cut, config=FAST)
    assert found.cut_explains
    assert found.cut is not None
    assert found.cut.ended_scores[2] == pytest.approx(right[2, 200:].mean())
    assert found.cut.share == pytest.approx((0, 0, 0.5, 0))


def test_adjusted_over_curves_a_weak_dip_among_many_flat_curves_is_no_dip() -> None:
    flat = dip_and_recovery([1, 2, 3, 4], [50, 51, 50, 49], 50, n=500, config=FAST)
    weak = dip_and_recovery([1, 2, 3, 4], [50, 42, 50, 50], 50, n=400, config=FAST)
    assert weak.dipped
    found = adjust_labels({"weak": weak, **{f"flat{place}": flat for place in range(20)}})
    assert found["weak"].tests.dip_p == pytest.approx(min(1, 21 * weak.tests.dip_p))
    assert found["weak"].label == "no_change"
    assert found["weak"].recovery_step is None
    assert adjust_labels({"weak": weak})["weak"].label == weak.label


def test_same_seed_same_result_and_it_is_read_back(tmp_path) -> None:
    config = DynamicsConfig(draws=1000, resamples=50, seed=4)
    first, second = (dip_and_recovery(**published("4B", "IFEval"), config=config) for _ in range(2))
    assert first == second
    assert 0 < first.label_share <= 1
    plain = {key: value for key, value in first.to_dict().items() if key in DipResult.model_fields}
    assert DipResult.model_validate(plain) == first
    assert list(first.to_pandas()["step"]) == [0, 10, 20, 40, 80, 160, 320, 480, 640]
    assert "dip_recover_to_base" in repr(first)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=3, max_size=9), st.integers(5, 2000))
def test_any_scores_have_a_label_and_consistent_numbers(scores: list[int], n: int) -> None:
    base, *rest = [score / 100 for score in scores]
    found = dip_and_recovery(
        range(1, len(rest) + 1), rest, base, n=n, config=DynamicsConfig(draws=1000, resamples=5, scale="share")
    )
    assert found.label in LABELS
    assert found.depth == pytest.approx(base - min(rest))
    assert found.peak_gain >= found.final_gain
    assert found.late_decline >= 0
    assert found.dipped == (found.tests.dip_p <= 0.05)
    if found.label == "unresolved":
        assert found.trough_step == len(rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [1, 2]}, "2 steps and 3 scores"),
        ({"steps": [1, 3, 2]}, "rise"),
        ({"steps": [0, 1, 2]}, "positive"),
        ({"n": None}, "need n"),
        ({"n": 0}, "between 1 and"),
        ({"scores": [50, 120, 50]}, "percentage"),
        ({"scores": [50, -1, 50]}, "percentage"),
        ({"scores": [50, float("nan"), 50]}, "missing"),
        ({"scores": ["a", 1, 2]}, "numbers"),
        ({"base_score": [50, 51]}, "axes"),
        ({"se": 0}, "positive"),
        ({"cut": [1, 2]}, "cut"),
        ({"cut": [60, 60, 60, 60]}, "right than ended"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(change: dict, message: str) -> None:
    given_ = {"steps": [1, 2, 3], "scores": [50, 51, 52], "base_score": 50, "n": 100} | change
    with pytest.raises(InputError, match=message):
        dip_and_recovery(**given_, config=FAST)


def test_unequal_items_and_one_checkpoint_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        dip_and_recovery([1, 2], np.ones((2, 5)), np.ones(4), config=FAST)
    with pytest.raises(InputError, match="own n and errors"):
        dip_and_recovery([1, 2], np.ones((2, 5)), np.ones(5), n=7, config=FAST)
    with pytest.raises(InputError, match="2 checkpoints"):
        dip_and_recovery([1], [50], 50, n=10, config=FAST)
