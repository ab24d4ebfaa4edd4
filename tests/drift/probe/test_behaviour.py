"""Profiles with intervals: planted drift, collapse and transfer; nothing where nothing changed; coverage."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mechprobe.drift.probe.behaviour import Analysis, arm_course, measure_behaviour, transfers
from mechprobe.drift.probe.behaviour_result import Behaviour
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.profile import drift_difference
from mechprobe.drift.probe.scores import ItemScores, resample
from mechprobe.emergence.arms import all_arms
from tests.drift.probe.planted import SKILLS, flipped, scores_of

RL = ("rl@step_000010", "rl@step_000020", "rl")
QUICK: dict[str, Any] = {"draws": 400, "final_steps": {"rl": 40}}


def measured(scores: ItemScores, **settings: Any) -> Behaviour:
    config = ProbeConfig(**{**QUICK, **settings})
    return measure_behaviour(scores, all_arms(scores.models, "base", config.final_steps), config)


def planted() -> ItemScores:
    """128 items per skill, half right in base: rl learns calculation, then loses simulation; sft stays as base."""
    base = np.zeros((5, 128), bool)
    base[:, ::2] = True
    one, two, last = base.copy(), base.copy(), base.copy()
    one[0, :96] = two[0] = last[0] = True
    two[4, :64] = last[4] = False
    return scores_of(np.stack([base, one, two, last, base]), ("base", *RL, "sft"))


def test_planted_drift_collapse_and_transfer_are_found() -> None:
    found = measured(planted(), trained=("calculation",))
    course = found.arms["rl"]
    assert [point.drift_l1.value for point in course.points] == pytest.approx([0.375, 0.75, 1.0])
    assert [point.step_l1.value for point in course.points] == pytest.approx([0.375, 0.375, 0.25])
    assert course.path_l1.value == course.points[-1].drift_l1.value == pytest.approx(1.0)
    assert course.wandering.value == pytest.approx(1.0)
    assert course.points[-1].lost.value == pytest.approx(0.5)
    assert course.points[-1].lost.low > 0.3
    assert all(point.drift_l1.low > 0 for point in course.points)
    (collapse,) = course.collapses
    assert (collapse.skill, collapse.kind, collapse.confirmed) == ("simulation", "persistent", True)
    assert collapse.checkpoints == ("rl@step_000020", "rl")
    gain = found.gains["rl"]["calculation"]
    assert gain.raw.value == pytest.approx(0.5)
    assert gain.raw.low > 0.4
    assert gain.p_holm < 1e-10
    transfer = found.transfer["rl"]
    assert (transfer.trained.value, transfer.other.value) == pytest.approx((0.5, -0.125))
    assert transfer.index.value == transfer.absolute.value == pytest.approx(-25)
    assert transfer.index.low < -25 < transfer.index.high < 0
    assert transfer.by_task["simulation"].value == pytest.approx(-100)
    (contrast,) = found.contrasts
    assert (contrast.first, contrast.second) == ("rl", "sft")
    assert contrast.drift.value == pytest.approx(1.0)
    assert contrast.drift.low > 0.5
    assert contrast.gains["simulation"].high < 0


def test_a_model_equal_to_base_has_no_drift_but_an_upper_end() -> None:
    """That no item of 128 differs does not prove that none does."""
    found = measured(planted(), trained=("calculation",))
    point = found.arms["sft"].points[0]
    assert point.drift_l1.value == point.drift_l1.low == point.drift_l1.corrected == 0
    assert 0 < point.drift_l1.high < 0.2
    assert np.isnan(point.entropy.value)
    assert not found.arms["sft"].collapses
    assert "not clearly above 0" in found.transfer["sft"].reason
    assert np.isnan(found.transfer["sft"].index.value)
    assert np.isnan(found.arms["sft"].wandering.value)


def test_a_base_near_zero_gives_no_relative_index_but_a_ratio_of_points() -> None:
    right = np.zeros((2, 2, 200), bool)
    right[0, 0, :10] = right[1, 0, :110] = right[0, 1, :100] = right[1, 1, :150] = True
    found = measured(scores_of(right, ("base", "rl")), trained=("calculation",)).transfer["rl"]
    assert "base scores 0.050 on calculation" in found.reason
    assert np.isnan(found.index.value)
    assert np.isnan(found.by_task["diagnostic"].value)
    assert found.absolute.value == pytest.approx(50)
    assert found.trained.value == pytest.approx(0.5)


def test_the_order_of_the_items_changes_nothing() -> None:
    scores = planted()
    order = np.random.default_rng(1).permutation(scores.right.shape[1]).tolist()
    one, two = measured(scores, trained=("calculation",)), measured(scores.take(order), trained=("calculation",))
    assert one.to_dict() == two.to_dict()


def test_the_same_items_are_drawn_for_all_models_and_levels() -> None:
    scores = planted()
    by_skill, by_task = (resample(scores, level, draws=100, seed=3) for level in ("skill", "task"))
    assert np.array_equal(by_skill.draws, by_task.draws)
    assert np.array_equal(by_skill.draws[:, 0], by_skill.draws[:, 4])  # base and sft are equal on every item
    assert not np.array_equal(by_skill.draws, resample(scores, "skill", draws=100, seed=4).draws)


def test_chance_is_taken_out_of_scores() -> None:
    right = np.zeros((2, 1, 100), bool)
    right[0, 0, :25] = right[1, 0, :62] = True
    found = measured(scores_of(right, ("base", "rl"), chance=0.25))
    base, rl = (found.profiles[name]["calculation"] for name in ("base", "rl"))
    assert base.corrected.value == pytest.approx(0)
    assert rl.corrected.value == pytest.approx((0.62 - 0.25) / 0.75)
    assert rl.corrected.low == pytest.approx((rl.raw.low - 0.25) / 0.75)
    assert found.gains["rl"]["calculation"].corrected.value == pytest.approx(rl.corrected.value)
    assert found.arms["rl"].points[0].drift_l1.value == pytest.approx(rl.corrected.value)


def test_the_forms_of_one_question_are_drawn_together() -> None:
    """Pairs with equal outcomes are half as many independent items, so intervals are wider by about √2."""
    rng = np.random.default_rng(0)
    base = np.repeat(rng.random((1, 200)) < 0.5, 2, axis=1)
    tuned = np.repeat(flipped(base[:, ::2], rng, up=0.4, down=0.1), 2, axis=1)
    right = np.stack([base, tuned])
    single, paired = (measured(scores_of(right, ("base", "rl"), pairs=pairs), draws=2000) for pairs in (False, True))
    widths = [each.arms["rl"].points[0].drift_l1 for each in (single, paired)]
    assert (widths[1].high - widths[1].low) / (widths[0].high - widths[0].low) == pytest.approx(2**0.5, rel=0.12)
    shares = [each.gains["rl"]["calculation"].raw for each in (single, paired)]
    assert (shares[1].high - shares[1].low) / (shares[0].high - shares[0].low) == pytest.approx(2**0.5, rel=0.12)
    assert paired.gains["rl"]["calculation"].p > single.gains["rl"]["calculation"].p


def worlds(n: int, size: int, seed: int, **flips: np.ndarray) -> Iterator[tuple[np.random.Generator, ItemScores]]:
    """Base and a model whose items flip with the given probabilities by skill."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        base = rng.random((len(flips["up"]), size)) < 0.5
        tuned = np.where(
            base, rng.random(base.shape) >= flips["down"][:, None], rng.random(base.shape) < flips["up"][:, None]
        )
        yield rng, scores_of(np.stack([base, tuned]), ("base", "rl"))


def test_nothing_is_found_where_nothing_changed() -> None:
    """Items flip both ways alike: drift is no larger than its null in 95 % of worlds, and 0 on average without the noise."""
    clear, above, confirmed = [], [], []
    for number, (_, scores) in enumerate(worlds(50, 48, 5, up=np.full(5, 0.15), down=np.full(5, 0.15))):
        found = Analysis(scores, ProbeConfig(draws=100, seed=number))
        course = arm_course(found, all_arms(scores.models, "base", {})[0])
        point = course.points[-1]
        clear.append(
            [getattr(point, name).low > 0 for name in ("drift_l1", "drift_l2", "imbalance", "jaggedness", "lost")]
        )
        above.append(point.drift_l1.corrected)
        confirmed.append(any(each.confirmed for each in course.collapses))
        assert point.drift_l1.value > 0
    assert np.mean(clear, axis=0).max() <= 0.1
    assert np.mean(confirmed) <= 0.1
    assert abs(np.mean(above)) < 3 * np.std(above) / len(above) ** 0.5


@pytest.mark.parametrize("change", [(0.0, 0.0, 0.0), (0.4, 0.0, -0.3)])
def test_intervals_hold_the_truth(change: tuple[float, ...]) -> None:
    """In at least 95 % of worlds, with room for the luck of 50 worlds."""
    up, down = (np.clip(side * 2 * np.array(change), 0.1, 1) for side in (1, -1))
    real, held = 0.5 * (up - down), []
    for number, (_, scores) in enumerate(worlds(50, 60, 7, up=up, down=down)):
        found = Analysis(scores, ProbeConfig(draws=100, seed=number))
        point = arm_course(found, all_arms(scores.models, "base", {})[0]).points[0]
        held.append([
            point.drift_l1.low <= np.abs(real).sum() <= point.drift_l1.high,
            point.lost.low <= np.clip(-real, 0, None).sum() <= point.lost.high,
            point.jaggedness.low <= np.abs(real - real.mean()).mean() <= point.jaggedness.high,
            *(gain.raw.low <= value <= gain.raw.high for gain, value in zip(found.gains("rl").values(), real, strict=True)),
        ])  # fmt: skip
    assert np.mean(held, axis=0).min() >= 0.9


def test_the_index_has_an_interval_that_holds_it() -> None:
    held = []
    for number, (_, scores) in enumerate(worlds(60, 200, 9, up=np.array([0.6, 0.3]), down=np.zeros(2))):
        index = transfers(scores, ProbeConfig(draws=200, seed=number, trained=("calculation",)))["rl"].index
        held.append(index.low <= 50 <= index.high)
    assert 0.9 <= np.mean(held) <= 1


def test_equal_drifts_of_two_arms_are_told_apart_in_few_worlds_only() -> None:
    rng, wrong = np.random.default_rng(3), []
    for _ in range(200):
        noise = rng.normal(0, 0.04, (2, 400, 5))
        first, second = np.array([0.5, 0, 0, 0, 0.02]), np.array([0, 0.26, -0.26, 0, 0])
        seen = first + rng.normal(0, 0.04, 5), second + rng.normal(0, 0.04, 5)
        _, low, high = drift_difference(*seen, *noise)
        wrong.append(not low <= 0 <= high)
    assert np.mean(wrong) <= 0.05


def test_sampled_responses_count_by_their_share() -> None:
    right = np.full((2, 1, 40), 0.5)
    right[1] = 0.75
    scores = scores_of(right, ("base", "rl"))
    sampled = ItemScores(**{**vars(scores), "n_draws": 4})
    found = measured(sampled)
    assert found.gains["rl"]["calculation"].raw.value == pytest.approx(0.25)
    assert found.gains["rl"]["calculation"].p < 1e-3
    assert found.arms["rl"].points[0].drift_l1.low > 0.1
    assert list(found.skills) == [SKILLS[0]]
