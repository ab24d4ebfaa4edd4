"""Rankings, specifications and leave-one-task-out, against hand-made values."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechprobe.errors import SelectionError
from mechprobe.selection.agnostic import agnostic_features, ranked_features, relative_values
from mechprobe.selection.rules import check_named, leave_one_task_out, resolve

#                 feature: 0    1    2    3    4    5
VALUES = np.array([[1.0, 0.5, 0.3, 0.0, -2.0, 0.25], [0.2, 2.0, 0.1, 0.0, 3.0, 1.5]])
LIVE = np.array([True, True, True, True, True, True])


def test_relative_values_by_hand() -> None:
    expected = [[1.0, 0.5, 0.3, 0.0, -2.0, 0.25], [0.2 / 3, 2 / 3, 0.1 / 3, 0.0, 1.0, 0.5]]
    assert relative_values(VALUES) == pytest.approx(np.array(expected))
    assert (relative_values(np.array([[-1.0, -2.0]])) == 0).all()


def test_agnostic_and_ranking_by_hand() -> None:
    # above 0.2 of the maximum on both tasks: 1 (0.5, 0.67) and 5 (0.25, 0.5); minima 0.5 and 0.25
    assert agnostic_features(VALUES, live=LIVE).tolist() == [1, 5]
    assert agnostic_features(VALUES, live=np.arange(6) != 1).tolist() == [5]
    # minima: 0 -> 0.067, 1 -> 0.5, 2 -> 0.033, 3 -> 0, 4 -> -2, 5 -> 0.25
    assert ranked_features(VALUES).tolist() == [1, 5, 0, 2, 3, 4]


def test_top_fills_from_below_and_says_so() -> None:
    chosen = resolve("top3", VALUES, live=LIVE)
    assert chosen.ids == (1, 5, 0)
    assert chosen.agnostic == 2
    assert "2 are task-agnostic, 1 were filled" in chosen.note
    assert resolve("top:1", VALUES, live=LIVE).note == ""
    dead = LIVE.copy()
    dead[1] = False
    assert resolve("top:2", VALUES, live=dead).ids == (5, 0)


def test_other_specifications(tmp_path: Path) -> None:
    table = pd.DataFrame({"feature_idx": range(6), "mas_rl": [0.1, 0.6, 0.7, 0.2, 0.9, 0.3], "density": [0.5] * 6})
    table.loc[4, "density"] = 0.01
    assert resolve("agnostic", VALUES, live=LIVE).ids == (1, 5)
    assert resolve("ids:3,1", VALUES, live=LIVE).ids == (3, 1)
    assert resolve("ids:,", VALUES, live=LIVE).ids == ()
    assert resolve('rule:"mas_rl>0.5 and density<0.1"', VALUES, live=LIVE, table=table).ids == (4,)
    (tmp_path / "f.txt").write_text("5\n0, 2")
    assert resolve(f"file:{tmp_path / 'f.txt'}", VALUES, live=LIVE).ids == (5, 0, 2)
    first = resolve("random:4@7", VALUES, live=LIVE).ids
    assert first == resolve("random:4@7", VALUES, live=LIVE).ids
    assert len(set(first)) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("top", "cannot be read"), ("top50", "50 features and 6 are live"), ("best10", "cannot be read"), ("top0", "names no feature"), ("ids:6", "features 0 to 5"),
        ("ids:-1", "features 0 to 5"), ("ids:1,1", "twice"), ("ids:x", "not a feature index"), ("random:9@1", "the crosscoder has 6"),
        ("random:3", "random:N@SEED"), ("file:none.txt", "cannot be read"), ("rule:mas>1", "run `mechprobe features`"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(spec: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        resolve(spec, VALUES, live=LIVE)


@pytest.mark.parametrize(
    "rule", ["mas_rk>0.5", "@os.system('true')", "mas_rl.__class__", "mas_rl>", "mas_rl[0]", "__import__('os')"]
)
def test_rules_cannot_run_code(rule: str) -> None:
    table = pd.DataFrame({"feature_idx": range(6), "mas_rl": np.zeros(6)})
    with pytest.raises(SelectionError):
        resolve(f"rule:{rule}", VALUES, live=LIVE, table=table)


@pytest.mark.parametrize("rule", ["feature_idx", "mas_rl", "mas_rl + 1", "1", "'a'", "mas_rl > 0.5 and 'a'"])
def test_a_rule_that_says_neither_yes_nor_no_of_a_feature_chooses_none(rule: str) -> None:
    table = pd.DataFrame({"feature_idx": range(6), "mas_rl": np.zeros(6)})
    with pytest.raises(SelectionError) as error:
        resolve(f"rule:{rule}", VALUES, live=LIVE, table=table)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_dead_features_are_none_to_draw() -> None:
    with pytest.raises(SelectionError, match="asks for 6 features and 5 are live"):
        resolve("random:6@1", VALUES, live=np.arange(6) != 1)


def test_named_features_are_checked_before_anything_is_scored(tmp_path: Path) -> None:
    for spec in ("top:6", "agnostic", "ids:0,5", "random:6@1", "ids:,"):
        assert check_named(spec, 6) == ()
    (tmp_path / "f.txt").write_text("5\n0")
    assert check_named(f"file:{tmp_path / 'f.txt'}", 6) == (5, 0)
    assert check_named("rule:feature_idx>3", 6, pd.DataFrame({"feature_idx": range(6)})) == (4, 5)
    for spec, message in (
        ("ids:6", "features 0 to 5"), ("ids:1,1", "twice"), ("random:7@1", "the crosscoder has 6"), ("top:0", "names no feature"), ("top:7", "the crosscoder has 6"),
        (f"file:{tmp_path / 'none'}", "cannot be read"), ("rule:mas>1", "run `mechprobe features`"), ("best", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(SelectionError, match=message):
            check_named(spec, 6)


def test_leave_one_task_out_by_hand() -> None:
    # without the first task: 4 (1), 1 (2/3), 5 (1/2) are above 0.2; without the second: 0 (1), 1 (.5), 2 (.3), 5 (.25)
    agnostic = leave_one_task_out("agnostic", VALUES, ("a", "b"), live=LIVE)
    assert agnostic == {"a": (4, 1, 5), "b": (0, 1, 2, 5)}
    assert leave_one_task_out("top:2", VALUES, ("a", "b"), live=LIVE) == {"a": (4, 1), "b": (0, 1)}
    dead = LIVE.copy()
    dead[4] = False
    assert leave_one_task_out("top:2", VALUES, ("a", "b"), live=dead)["a"] == (1, 5)


def test_what_is_named_outright_leaves_no_task_out() -> None:
    for spec in ("ids:1,2", "random:2@1"):
        assert leave_one_task_out(spec, VALUES, ("a", "b"), live=LIVE) == {}
    assert leave_one_task_out("top:2", VALUES[:1], ("a",), live=LIVE) == {}
