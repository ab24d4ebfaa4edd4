"""Sets chosen without a task, judged from synthetic outcomes: controls count only for sets of the same size."""

from typing import Any

import numpy as np
import pytest

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import RelativeChanges
from mechprobe.interventions.verdicts.effects import Measurements, Right, condition_results
from mechprobe.interventions.verdicts.leave_one_out import left_out_verdicts
from mechprobe.interventions.verdicts.paired import ConditionOutcomes, compare_mains
from mechprobe.interventions.verdicts.verdict import judge_edits

N, TASKS = 40, ("sum", "pair")
CONFIG = InterveneConfig(n_random=20, n_shuffled=20)


def outcomes(n_right: int) -> Right:
    return {task: np.arange(N)[:, None] < n_right for task in TASKS}


def found_in(right: Right) -> ConditionOutcomes:
    """Outcomes whose wrong responses are all parsed."""
    return ConditionOutcomes(right, {task: np.zeros_like(values) for task, values in right.items()})


def judged(without: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Verdicts on base by left-out task, where every transplanted set works and no control does; the full set has 3 features."""
    clean = Condition("base|clean", "base", "clean", "none", "clean", "clean")
    tuned = Condition("rl|clean", "rl", "clean", "none", "clean", "clean")
    patch, back = (
        Condition(f"{host}|patch", host, "patch", "whole residual", "ceiling", "patch", donor=donor)
        for host, donor in (("base", "rl"), ("rl", "base"))
    )
    main = Condition("base|transplant|agnostic", "base", "transplant", "agnostic", "selected", "edit", (1, 2, 3), "rl")
    conditions = [clean, tuned, patch, back, main]
    right = {c.name: outcomes(n) for c, n in zip(conditions, (4, 36, 36, 4, 30), strict=True)}
    for draw in range(20):
        for kind in ("random", "shuffled"):
            name = f"base|transplant|{kind} {draw}"
            conditions.append(Condition(name, "base", "transplant", kind, kind, "edit", (4, 5, 6), "rl", draw))  # type: ignore[arg-type]
            right[name] = outcomes(4)
    nothing = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, None, {})
    codes = {name: dict.fromkeys(TASKS, "W" * N) for name in right}
    rows = condition_results(conditions, right, codes, TASKS, CONFIG, nothing)
    pooled = {name: found_in(found).with_pooled(TASKS) for name, found in right.items()}
    verdict = judge_edits(rows, TASKS, CONFIG, compare_mains(conditions, pooled, CONFIG))
    for task, ids in without.items():
        rule = f"agnostic without {task}"
        name = f"base|transplant|{rule}"
        conditions.append(Condition(name, "base", "transplant", rule, "left_out", "edit", ids, "rl", tasks=(task,)))
        right[name] = {task: outcomes(30)[task]}
    outcomes_of = {name: found_in(found) for name, found in right.items()}
    found = left_out_verdicts(conditions, outcomes_of, rows, verdict, CONFIG, chosen=without)
    return {row.task: row for row in found}


def test_a_set_of_the_same_size_is_judged_against_the_full_set_s_controls() -> None:
    row = judged({"sum": (1, 2, 7), "pair": (1, 2, 3)})["sum"]
    assert row.verdict == "supported", row.sentence
    assert (row.n_features, row.n_shared, row.n_random) == (3, 2, 20)


def test_the_overlap_with_the_full_set_stands_beside_the_verdict() -> None:
    """Two of three features are shared, hence a Jaccard index of 2 / 4; a disjoint set is not called dependent."""
    rows = judged({"sum": (1, 2, 7), "pair": (7, 8, 9)})
    assert (rows["sum"].jaccard, rows["pair"].jaccard) == (0.5, 0.0)
    assert (
        "shares 2 of its 3 features with the full set (Jaccard 0.50), so it is hardly independent"
        in rows["sum"].sentence
    )
    assert "shares 0 of its 3 features with the full set (Jaccard 0.00)." in rows["pair"].sentence


@pytest.mark.parametrize("ids", [(1, 2, 3, 7), (1, 2)])
def test_a_set_of_another_size_keeps_its_effect_and_has_no_verdict(ids: tuple[int, ...]) -> None:
    rows = judged({"sum": ids, "pair": (1, 2, 3)})
    row = rows["sum"]
    assert row.verdict == f"no verdict: the set without the task has {len(ids)} features, its controls 3"
    assert row.effect[0] == pytest.approx(26 / N)
    assert (row.n_random, row.n_equal_norm) == (0, 0)
    assert row.p_random != row.p_random
    assert "random sets" not in row.sentence
    assert f": {row.verdict}. The set shares" in row.sentence
    assert rows["pair"].verdict == "supported", rows["pair"].sentence
