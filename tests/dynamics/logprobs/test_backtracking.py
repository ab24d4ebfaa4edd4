"""Counts by hand, and planted imitation and internalisation."""

import numpy as np
import pytest

from mechprobe.dynamics.checkpoints import ArmSteps
from mechprobe.dynamics.logprobs.backtracking import Backtracking
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.result import BacktrackVerdict
from mechprobe.records import Outcome, Outcomes

CONFIG = LogprobsConfig(draws=300)
COURSE = ArmSteps(("base", "rl@step_000010", "rl"), (10.0, 20.0), "steps")


def outcome(model: str, index: int, text: str, right: bool, task: str = "sums", n: int = 10) -> Outcome:
    return Outcome(f"s{index}", task, model, "right" if right else "wrong", text, n, finish="stop")


def planted(
    base: tuple[float, float], last: tuple[float, float, float], *, n: int = 300, config: LogprobsConfig = CONFIG
) -> BacktrackVerdict:
    """``base`` is the share of responses with a word and the accuracy; ``last`` the share, and the accuracy with and without."""
    rng, records = np.random.default_rng(0), []
    for index in range(n):
        records.append(outcome("base", index, "wait 5" if rng.random() < base[0] else "5", rng.random() < base[1]))
        marked = rng.random() < last[0]
        records.append(outcome("rl", index, "Wait, 5" if marked else "5", rng.random() < last[1 if marked else 2]))
    found = Backtracking(Outcomes(records), ["base", "rl@step_000010", "rl"], config).verdict("rl", COURSE)
    assert found is not None
    return found


def test_counts_by_hand() -> None:
    records = [
        outcome("rl", 0, "wait, let me check: 5", True, n=20), outcome("rl", 1, "some 5", False), outcome("rl", 2, "waiting", True),
        outcome("rl", 3, "hmm 5", False, task="facts", n=60), outcome("base", 0, "5", False),
    ]  # fmt: skip
    rows = {row.model: row for row in Backtracking(Outcomes(records), ["base", "rl"], CONFIG).rows()}
    row = rows["rl"]
    assert (row.words, row.responses, row.with_word) == (3, 4, 2)
    assert row.per_1k.value == pytest.approx(1000 * 3 / 100)
    assert (row.right_with.value, row.right_without.value, row.accuracy.value) == (0.5, 0.5, 0.5)
    assert np.isnan(row.difference.value)  # too few
    assert rows["base"].per_1k.value == 0
    assert np.isnan(rows["base"].right_with.value)


def test_words_used_are_internalisation() -> None:
    found = planted((0.05, 0.4), (0.5, 0.9, 0.6))
    assert found.label == "internalisation"
    assert found.difference.low < 0.3 < found.difference.high
    assert found.first == "base"
    assert found.last == "rl"


def test_words_without_accuracy_are_imitation() -> None:
    found = planted((0.05, 0.5), (0.6, 0.4, 0.4))
    assert found.label == "imitation"
    assert found.accuracy_change.high <= 0.05


@pytest.mark.parametrize(
    ("base", "last", "label", "reason"),
    [
        ((0.0, 0.4), (0.0, 0.8, 0.8), "no rise", "no response of base or rl"),
        ((0.6, 0.4), (0.1, 0.8, 0.8), "no rise", "rarer"),
        ((0.3, 0.4), (0.3, 0.8, 0.8), "cannot be told", "includes 0"),
        ((0.05, 0.4), (0.5, 0.8, 0.8), "cannot be told", "not shown to be right more often"),
        ((0.05, 0.4), (1.0, 0.8, 0.8), "cannot be told", "fewer than 10"),
    ],
)
def test_what_cannot_be_told_is_said(base: tuple, last: tuple, label: str, reason: str) -> None:
    found = planted(base, last)
    assert found.label == label
    assert reason in found.reason


def test_few_responses_tell_nothing() -> None:
    assert planted((0.1, 0.5), (0.5, 0.5, 0.5), n=40).label == "cannot be told"
    few = planted((0.0, 1.1), (1.1, 1.1, 1.1), n=29)  # all alike, so that a bootstrap has no width
    assert few.label == "cannot be told"
    assert "29 prompts" in few.reason


def test_tasks_that_check_more_do_not_decide() -> None:
    """Within each task words make no difference; the easy task has most of them, so that the raw shares differ."""
    rng, records = np.random.default_rng(1), []
    for task, share, chance in (("easy", 0.8, 0.9), ("hard", 0.1, 0.3)):
        for index in range(400):
            text = "wait 5" if rng.random() < share else "5"
            records.append(outcome("rl", index, text, rng.random() < chance, task=task))
    [row] = Backtracking(Outcomes(records), ["rl"], CONFIG).rows()
    assert row.right_with.value - row.right_without.value > 0.3
    assert row.difference.low < 0 < row.difference.high


def test_an_arm_that_was_not_evaluated_has_no_verdict() -> None:
    found = Backtracking(Outcomes([outcome("base", 0, "5", True)]), ["base", "rl"], CONFIG)
    assert found.verdict("rl", COURSE) is None
    imported = Outcome("s0", "sums", "base", "right", "", 0)  # options were compared, nothing was generated
    assert not list(Backtracking(Outcomes([imported]), ["base"], CONFIG).rows())
