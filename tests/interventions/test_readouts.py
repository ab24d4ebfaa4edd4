"""Transplants under two read-outs, from synthetic outcomes: which read-out the verdict uses, and where the two disagree."""

from typing import Any

import numpy as np
import pytest

from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.plan import plan, readout_of
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import InterventionResults, RelativeChanges
from mechprobe.interventions.verdicts.results import Measurements, intervention_results
from mechprobe.records import Sample
from mechprobe.report.tables.interventions import sentences
from mechprobe.selection.result import Selection, choose
from mechprobe.selection.scores import Scores

N = 50
TASKS = [
    Task(name, tuple(Sample(f"{name}{k}", name, f"{k}", "1") for k in range(N)), scorer("exact"), 2)
    for name in ("sum", "pair", "seen")
]


@pytest.fixture(scope="module")
def selection() -> Selection:
    values, ones, fires = np.random.default_rng(0).random((2, 60)), np.ones(60), np.ones((2, 60), dtype=bool)
    values[:, :3] += 1
    fires[0, :3], fires[1, :2] = False, False
    scores = Scores(("sum", "pair"), (4, 4), values, values, ones, ones, ones, ones, ones, fires=fires)
    return choose(scores, "top:3", site="resid_post.1", crosscoder="x", n_controls=20)


NOTHING_MEASURED = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, None, {})


def run(selection: Selection, gained: dict[str, int], **settings: Any) -> InterventionResults:
    """Results where base has 4 of 50 samples right, rl and the whole residual have 44, and a transplant into base has as many as
    ``gained`` gives for its read-out. No other edit has an effect, and the trained task behaves like the others."""
    config = InterveneConfig(
        edits_base=("transplant", "steer:2"), edits_tuned=("transplant", "ablate"), sizes=(), trained=("seen",), **settings
    )  # fmt: skip
    conditions = [c for c in plan(selection, {}, config) if c.tasks != ("gone",)]
    codes = {}
    for c in conditions:
        n = {"base": 4, "rl": 44}[c.model]
        if c.set_kind == "ceiling":
            n = 48 - n
        elif c.set_kind in ("selected", "compare") and (c.model, c.edit) == ("base", "transplant"):
            n = gained[readout_of(c, config).mode]
        codes[c.name] = {
            task.name: "R" * n + "W" * (N - n) for task in TASKS if task.name in (c.tasks or ("sum", "pair", "seen"))
        }
    return intervention_results(selection, conditions, codes, TASKS, config, NOTHING_MEASURED)


def test_a_main_edit_under_another_spelling_is_no_dose(selection: Selection) -> None:
    config = InterveneConfig(edits_base=("clamp:3.0",), doses=("clamp:3", "clamp:5"), sizes=(), trained=("seen",))
    assert [c.edit for c in plan(selection, {}, config) if c.set_kind == "dose"] == ["clamp:5"]


@pytest.mark.parametrize(
    ("own", "other", "verdict"), [("joint", "swap", "refuted"), ("swap", "joint", "supported"), ("single", "joint", "refuted")]
)  # fmt: skip
def test_the_verdict_is_of_the_read_out_of_the_run(selection: Selection, own: str, other: str, verdict: str) -> None:
    found = run(selection, {"joint": 3, "swap": 40, "single": 4}, transplant_readout=own)
    rows = [row for row in found.verdicts if (row.model, row.edit) == ("base", "transplant")]
    assert {(row.readout, row.verdict) for row in rows if row.task != "seen"} == {(own, verdict)}
    assert all(f"n = {row.n}; {own} read-out; whole residual" in row.sentence for row in rows)
    assert found.readouts_of_edits == {"transplant": own, "ablate, clamp, scale": "swap"}
    assert next(row.readout for row in found.verdicts if row.edit == "ablate") == "swap"
    assert all("read-out" not in row.sentence for row in found.verdicts if row.edit == "steer:2")
    kinds = {row.set_kind for row in found.conditions if row.edit == "transplant" and row.readout == own}
    assert kinds == {"selected", "random", "rescaled", "shuffled", "shifted"}
    compared = [row for row in found.conditions if row.features == f"top:3, {other} read-out"]
    assert [(row.model, row.readout) for row in compared] == [("base", other), ("rl", other)]
    assert {row.readout for row in found.left_out} == {own}


def test_where_two_read_outs_disagree_it_is_one_sentence(selection: Selection) -> None:
    found = run(selection, {"joint": 3, "swap": 40}, n_random=1, n_shuffled=1)
    base, tuned = found.readouts
    assert (base.model, tuned.model, tuned.sentence) == ("base", "rl", "")
    assert [(row.task, row.n, row.disagree) for row in base.rows] == [
        ("sum", N, True), ("pair", N, True), ("pooled", 2 * N, True)
    ]  # fmt: skip
    assert base.rows[2].effect[0] == pytest.approx(-0.02)
    assert base.rows[2].effect_other[0] == pytest.approx(0.72)
    assert base.rows[2].difference[0] == pytest.approx(-0.74)
    assert all(
        fact in base.sentence for fact in ("transplant of top:3 in base", "joint", "swap", "the untrained tasks -2 [")
    )
    assert f"against 72 [{round(100 * base.rows[2].effect_other.low)}, " in base.sentence
    assert "intervene.transplant_readout=swap" in base.sentence
    assert sum(base.sentence in line for line in sentences(found.to_dict())) == 1
    [never_active] = [line for line in sentences(found.to_dict()) if "sum 3, pair 2" in line]
    assert "3 features" in never_active


@pytest.mark.parametrize(
    ("swap", "settings"), [(4, {}), (3, {}), (40, {"min_n": 101})], ids=["a sample", "equal", "too few"]
)
def test_where_they_agree_or_samples_are_few_there_is_none(
    selection: Selection, swap: int, settings: dict[str, int]
) -> None:
    base, _ = run(selection, {"joint": 3, "swap": swap}, n_random=1, n_shuffled=1, **settings).readouts
    assert base.sentence == ""
    assert not any(row.disagree for row in base.rows)
