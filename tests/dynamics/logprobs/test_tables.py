"""Rows by hand, planted classes that rise or rise earlier, and nulls in which matched controls cancel what moves all tokens."""

import numpy as np
import pytest

from mechprobe.dynamics.checkpoints import ArmSteps
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.learning import learning_rows
from mechprobe.dynamics.logprobs.matching import matched_rows
from mechprobe.dynamics.logprobs.result import ContrastRow, ExcessRow, LearningRow, OrderRow
from mechprobe.dynamics.logprobs.rows import SourceTable, histograms, model_rows
from mechprobe.dynamics.logprobs.token_table import TokenTable
from tests.dynamics.logprobs.planted import CONFIG, NAMES, random_table, trace

BACKTRACK = NAMES.index("backtrack")
COURSE = ArmSteps(("base", "rl@step_000010", "rl@step_000020", "rl"), (10.0, 20.0, 40.0), "steps")


def test_rows_by_hand() -> None:
    traces = (trace(0, [5, 6, 2], n_text=2, n_bytes=4, teacher=(-1.0, -2.0, np.nan)), trace(1, [7], task="facts"))
    classes = np.array([BACKTRACK, NAMES.index("other"), NAMES.index("special"), NAMES.index("other")])
    table = TokenTable(
        traces, NAMES, np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]), np.array([5, 6, 2, 7]), classes,
        np.array([-1.0, -2.0, np.nan, np.nan]),
    )  # fmt: skip
    source = SourceTable.of(table, "gold", CONFIG)
    log_prob, base = np.array([-1.0, -2.0, -3.0, -30.0]), np.array([-2.0, -2.0, -2.0, -1.0])
    values = {"log_prob": log_prob, "entropy": np.ones(4), "rank": np.array([1, 11, 2, 40])}
    rows = list(model_rows(source, "rl", values, {"base": base, "teacher": table.teacher}, CONFIG))
    found = {(row.by, row.group, row.metric, row.reference): row for row in rows}

    def value(metric: str, reference: str = "", by: str = "all", group: str = "all") -> float:
        return found[by, group, metric, reference].value

    assert value("log_prob") == -9
    assert value("rank_1") == 0.25
    assert value("rank_over_10") == 0.5
    assert value("delta", "base") == pytest.approx((1 + 0 - 1 - 29) / 4)
    assert value("ratio", "base") == pytest.approx((np.e + 1 + np.exp(-1) + np.exp(-20)) / 4)  # clamped at -20
    assert value("clip_high", "base") == 0.25  # e > 2
    assert value("clip_low", "base") == 0
    assert value("sequence_ratio", "base") == pytest.approx((1 + np.exp(-20)) / 2)
    assert value("delta", "teacher") == 0
    assert found["all", "all", "delta", "teacher"].n == 2  # the end token and the second trace have no teacher
    assert value("bits_per_byte") == pytest.approx((3 + 30) / np.log(2) / (4 + 1))
    assert value("bits_per_byte", "teacher") == pytest.approx(3 / np.log(2) / 4)
    assert value("delta", "base", "class", "backtrack") == 1
    assert value("delta", "base", "task", "facts") == -29
    assert ("class", "digits", "delta", "base") not in found
    [of_base, _] = histograms(source, "rl", log_prob, {"base": base, "teacher": table.teacher})
    assert sum(of_base.counts) == 4
    assert of_base.counts[0] == 1


def test_clip_shares_below_one() -> None:
    source = random_table(np.random.default_rng(0))
    n = len(source.table.ids)
    log_prob = np.where(np.arange(n) % 4 == 0, -2.0, 0.0)
    values = {"log_prob": log_prob, "entropy": np.ones(n), "rank": np.ones(n, int)}
    config = LogprobsConfig(draws=100, clip=(0.5, 0.2))
    rows = model_rows(source, "rl", values, {"base": np.zeros(n)}, config)
    found = {row.metric: row.value for row in rows if row.by == "all"}
    assert found["clip_low"] == pytest.approx(0.25)  # e⁻² < 0.5
    assert found["clip_high"] == 0


def contrasts(source: SourceTable, rl: np.ndarray, sft: np.ndarray) -> tuple[dict[str, ExcessRow], ContrastRow]:
    rows = list(matched_rows(source, {"rl": rl, "sft": sft}, [("rl", "rl"), ("sft", "sft")], CONFIG))
    [contrast] = [row for row in rows if isinstance(row, ContrastRow)]
    return {row.model: row for row in rows if isinstance(row, ExcessRow)}, contrast


def test_what_moves_frequent_or_late_tokens_alike_cancels_in_the_contrast() -> None:
    source, rng = random_table(np.random.default_rng(1)), np.random.default_rng(2)
    table = source.table
    frequency = np.bincount(table.ids)[table.ids]
    alike = 0.3 * table.position + 0.5 * np.floor(np.log2(frequency) / 2)
    excess, contrast = contrasts(source, alike + 0.1 * rng.standard_normal(len(table.ids)), 0.2 * alike)
    assert excess["rl"].excess.low < 0 < excess["rl"].excess.high or abs(excess["rl"].excess.value) < 0.1
    assert abs(contrast.contrast.value) < 0.1
    assert contrast.matched == 1
    assert contrast.n_controls > 100


def test_a_planted_class_is_found_against_its_controls() -> None:
    source, rng = random_table(np.random.default_rng(3)), np.random.default_rng(4)
    n = len(source.table.ids)
    planted = 0.4 * (source.table.classes == BACKTRACK) + 0.2 * source.table.position + 0.3 * rng.standard_normal(n)
    excess, contrast = contrasts(source, planted, 0.2 * source.table.position + 0.3 * rng.standard_normal(n))
    assert excess["rl"].excess.low < 0.4 < excess["rl"].excess.high
    assert contrast.contrast.low > 0.2
    assert contrast.contrast.low < 0.4 < contrast.contrast.high


def test_the_interval_of_the_contrast_covers_a_null() -> None:
    misses = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, 7])
        source = random_table(rng, n_prompts=40)
        shared = rng.standard_normal(40)[source.prompts.of_token]  # tokens of one prompt depend on each other
        noise = [shared * scale + rng.standard_normal(len(shared)) for scale in (1.0, -1.0)]
        contrast = contrasts(source, *noise)[1].contrast
        misses += not contrast.low <= 0 <= contrast.high
    assert misses <= 8  # 5 % of 60 are 3, and P(more than 8) is 0.2 %


def test_strata_without_controls_are_left_out() -> None:
    source = random_table(np.random.default_rng(5))
    source.table.classes[:] = BACKTRACK
    rows = [row for row in matched_rows(source, {"rl": np.ones(len(source.table.ids))}, [], CONFIG)]
    [row] = [row for row in rows if isinstance(row, ExcessRow)]
    assert np.isnan(row.excess.value)
    assert (row.matched, row.n_controls) == (0, 0)


def moved(source: SourceTable, seed: int, *sizes: dict[str, float]) -> tuple[dict[str, LearningRow], list[OrderRow]]:
    """Rows of a course whose classes have the given mean Δ at every checkpoint."""
    rng, names = np.random.default_rng(seed), np.array(NAMES)[source.table.classes]
    deltas = {
        model: np.vectorize(lambda name, size=size: size.get(name, 0.0))(names) + 0.5 * rng.standard_normal(len(names))
        for model, size in zip(COURSE.models[1:], sizes, strict=True)
    }
    rows = list(learning_rows(source, "rl", COURSE, deltas))
    learned = {row.group: row for row in rows if isinstance(row, LearningRow)}
    return learned, [row for row in rows if isinstance(row, OrderRow)]


def test_a_class_that_rises_earlier_is_first_and_ends_of_intervals_are_checkpoints() -> None:
    sizes = ({"backtrack": 0.9, "digits": 0.05}, {"backtrack": 1.0, "digits": 0.2}, {"backtrack": 1.0, "digits": 1.0})
    learned, [pair] = moved(random_table(np.random.default_rng(6)), 7, *sizes)
    early, late = learned["backtrack"].half_step, learned["digits"].half_step
    assert early is not None
    assert late is not None
    assert (early.low, early.high) == (0, 10)
    assert (late.low, late.high) == (20, 40)
    assert late.value == pytest.approx(
        20 * 2 ** (0.3 / 0.8), abs=1.5
    )  # the axis is logarithmic after the first checkpoint
    assert (learned["other"].half_step, learned["other"].untold) == (None, "its change is not clear of 0")
    assert {pair.first, pair.second} == {"backtrack", "digits"}
    assert pair.first_moved == "backtrack"
    assert pair.p_holm < 0.01
    assert pair.lag.low >= 10


def test_classes_that_pass_half_between_the_same_checkpoints_have_no_order() -> None:
    sizes = ({"backtrack": 0.6, "digits": 0.95, "other": -0.8}, *[{"backtrack": 1.0, "digits": 1.0, "other": -1.0}] * 2)
    learned, order = moved(random_table(np.random.default_rng(8)), 9, *sizes)
    for name in ("backtrack", "digits", "other", "all"):
        half = learned[name].half_step
        assert half is None or (half.low, half.high) == (0, 10), name
    assert len(order) == 3
    assert all(pair.first_moved == "" and pair.lag.low <= 0 <= pair.lag.high for pair in order)


def test_classes_that_rise_together_have_no_order() -> None:
    alike = [dict.fromkeys(NAMES, size) for size in (0.3, 0.6, 1.0)]
    _, order = moved(random_table(np.random.default_rng(8)), 9, *alike)
    assert len(order) == 3
    assert not any(pair.first_moved for pair in order)


def test_a_class_of_one_prompt_has_no_half_step() -> None:
    source = random_table(np.random.default_rng(10))
    source.table.classes[source.table.classes == BACKTRACK] = NAMES.index("other")
    source.table.classes[:5] = BACKTRACK
    learned, order = moved(source, 11, *[{"backtrack": size, "digits": size} for size in (0.2, 0.9, 1.0)])
    assert (learned["backtrack"].half_step, learned["backtrack"].n) == (None, 5)
    assert "two prompts" in learned["backtrack"].untold
    assert learned["digits"].half_step is not None
    assert not order
