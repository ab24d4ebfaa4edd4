"""What is damage, also where the base has nothing to lose; what p-values are adjusted over; and what could have been found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mechprobe.cli.summary import verdict_sentences
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.plan import plan
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import CollateralSource, InterventionResults, RelativeChanges
from mechprobe.interventions.result_rows import Collateral, Verdict
from mechprobe.interventions.verdicts.results import Measurements, intervention_results
from mechprobe.interventions.verdicts.rule import draws_needed, reachable, rule_text
from mechprobe.records import Sample
from mechprobe.report.tables.interventions import ranking_sentences, sentences
from mechprobe.selection.result import Selection, choose
from mechprobe.selection.scores import Scores
from mechprobe.statistics import Interval

N = 100
TASKS = [
    Task(name, tuple(Sample(f"{name}{k}", name, f"{k}", "1") for k in range(N)), scorer("exact"), 2)
    for name in ("sum", "pair", "seen")
]
CLEAN = {"base": "R" * 2 + "W" * 98, "rl": "R" * 80 + "W" * 20}
"""Base is at its floor."""
ABLATED = "rl|ablate|top:3"


@pytest.fixture(scope="module")
def selection() -> Selection:
    values, ones = np.random.default_rng(0).random((2, 300)), np.ones(300)
    values[:, :3] += 1
    fires = np.ones((2, 300), dtype=bool)
    scores = Scores(("sum", "pair"), (4, 4), values, values, ones, ones, ones, ones, ones, fires=fires)
    return choose(scores, "top:3", site="resid_post.1", crosscoder="x", n_controls=99)


def run(
    selection: Selection,
    edited: dict[str, Any],
    *,
    rise: float | None = None,
    related: bool = False,
    others: dict[str, Selection] | None = None,
    **settings: Any,
) -> InterventionResults:
    """Results where the ceilings exchange the models and no other condition than ``edited`` has an effect.

    ``edited`` maps conditions to codes: of every task, or by task. ``rise`` is the rise of the cross-entropy of unrelated text
    under the edits of rl; the whole residual changes it by 0.2 nats. ``related`` says that it is text of the tasks. ``others`` are
    sets by other rankings.
    """
    given = {"edits_base": ("transplant",), "edits_tuned": ("ablate",), "sizes": (), "doses": (), "trained": ("seen",)}
    config = InterveneConfig(**{**given, **settings})
    codes = {}
    for c in (conditions := plan(selection, others or {}, config)):
        clean = CLEAN[c.model] if c.set_kind != "ceiling" else CLEAN["rl" if c.model == "base" else "base"]
        found = edited.get(c.name, clean)
        codes[c.name] = {
            task.name: found if isinstance(found, str) else found.get(task.name, clean)
            for task in TASKS
            if task.name in (c.tasks or ("sum", "pair", "seen"))
        }
    collateral = {}
    if rise is not None:
        for name, value in ((ABLATED, rise), ("rl|patch|whole residual", 0.2)):
            cells = {"kl": Interval(1.0, 0.9, 1.1, 9), "ce_change": Interval(value, value - 0.02, value + 0.02, 9)}
            collateral[name] = Collateral.model_validate(cells)
    texts = (
        CollateralSource(source="texts", related=related, n_texts=9, n_tokens=9, fingerprint="x")
        if collateral
        else None
    )
    measured = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, texts, collateral)
    return intervention_results(selection, conditions, codes, TASKS, config, measured)


def row(found: InterventionResults, model: str = "rl", task: str = "pooled") -> Verdict:
    return next(each for each in found.verdicts if (each.model, each.task) == (model, task))


def test_total_destruction_near_the_floor_is_damage(selection: Selection) -> None:
    """rl falls from 80 % to 0 %. Base has 2 %, so the effect is hardly beyond the ceiling, but no response is parsed."""
    found = row(run(selection, {ABLATED: "U" * N}))
    assert found.effect.value == pytest.approx(0.8)
    assert found.verdict == "damage", found.sentence
    assert found.sentence.endswith(
        ": damage (100 points more responses are unparsed or cut than in either clean model)."
    )


@pytest.mark.parametrize("broken", ["U", "C"])
@pytest.mark.parametrize(("n_broken", "verdict"), [(0, "supported"), (10, "supported"), (18, "damage"), (98, "damage")])
def test_broken_responses_beyond_both_clean_models_are_damage(
    selection: Selection, broken: str, n_broken: int, verdict: str
) -> None:
    """Ten points of 200 samples more do not exceed the margin of ten; 18 do, with their interval."""
    edited = "RR" + broken * n_broken + "W" * (98 - n_broken)
    assert row(run(selection, {ABLATED: edited})).verdict == verdict


def test_broken_responses_of_a_clean_model_are_no_damage(selection: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base leaves a third of its responses unparsed. With its features, rl does so too."""
    monkeypatch.setitem(CLEAN, "base", "RR" + "U" * 33 + "W" * 65)
    assert row(run(selection, {ABLATED: CLEAN["base"]})).verdict == "supported"


def test_a_gain_with_broken_responses_is_damage(selection: Selection) -> None:
    found = row(run(selection, {"base|transplant|top:3": "R" * 60 + "U" * 40}), "base")
    assert found.effect.low > 0.4
    assert found.verdict == "damage"


@pytest.mark.parametrize(
    ("seen", "words"), [("U" * N, "responses to seen"), ("R" * 2 + "W" * 98, ""), ("R" * 80 + "W" * 20, "")]
)
def test_a_trained_task_that_breaks_is_damage_everywhere(selection: Selection, seen: str, words: str) -> None:
    """A trained task may fall to base, but not below both clean models or into responses that cannot be parsed."""
    found = run(selection, {ABLATED: {"sum": CLEAN["base"], "pair": CLEAN["base"], "seen": seen}})
    for task in ("sum", "pooled"):
        assert (row(found, task=task).verdict == "damage") == bool(words)
        assert words in row(found, task=task).damage
    assert row(found, task="seen").verdict == "no verdict: post-training saw this task"


def test_a_trained_task_below_both_clean_models_is_damage(
    selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLEAN, "base", "R" * 40 + "W" * 60)
    broken = {"sum": CLEAN["base"], "pair": CLEAN["base"], "seen": "R" * 10 + "W" * 90}
    found = row(run(selection, {ABLATED: broken}))
    assert (found.verdict, found.damage) == ("damage", "accuracy on seen falls below that of both clean models")


@pytest.mark.parametrize(("rise", "verdict"), [(0.3, "supported"), (0.5, "damage"), (-2.0, "supported")])
def test_unrelated_text_that_breaks_is_damage(selection: Selection, rise: float, verdict: str) -> None:
    found = row(run(selection, {ABLATED: CLEAN["base"]}, rise=rise))
    assert found.verdict == verdict
    assert ("0.50 nats" in found.damage) == (verdict == "damage")


def test_text_of_the_tasks_is_not_unrelated_text(selection: Selection) -> None:
    """An edit that does what it should changes the predictions on prompts of its tasks, too."""
    assert row(run(selection, {ABLATED: CLEAN["base"]}, rise=0.5, related=True)).verdict == "supported"


def test_results_say_where_a_set_by_another_ranking_does_more(selection: Selection) -> None:
    others = {f"top:3 by {name}": replace(selection, features=(5, 6), ranking=name) for name in ("joint", "score")}
    edited = {"base|transplant|top:3": "R" * 12 + "W" * 88, "base|transplant|top:3 by joint": CLEAN["rl"]}
    found = run(selection, edited, others=others)
    joint, score = found.other_rankings
    assert (joint.features, joint.n_features, joint.n_selected) == ("top:3 by joint", 2, 3)
    assert joint.effect.value == pytest.approx(0.78)
    assert joint.difference.value == pytest.approx(-0.68)
    assert (
        "does 68 [61, 74] points more than that of top:3 (3); `mechprobe intervene --ranking joint`" in joint.sentence
    )
    assert (score.effect.value, score.difference.value) == (pytest.approx(0.0), pytest.approx(0.1))
    assert not score.sentence
    assert joint.sentence in ranking_sentences(found.to_dict())
    assert joint.sentence in verdict_sentences(found.to_dict())


def test_a_small_share_of_the_ceiling_is_support_in_part(selection: Selection) -> None:
    found = run(selection, {ABLATED: "R" * 60 + "W" * 40, "base|transplant|top:3": CLEAN["rl"]})
    part, whole = row(found), row(found, "base")
    assert (part.verdict, whole.verdict) == ("supported in part", "supported")
    assert part.share_interval.value == pytest.approx(20 / 78)
    assert part.share_interval.low < 20 / 78 < part.share_interval.high < 0.5
    low, high = (round(100 * end) for end in part.share_interval[1:])
    assert f"ablate in rl: supported in part (26 [{low}, {high}] % of the ceiling)" in found.verdict
    assert f"share of it 26 [{low}, {high}] %" in part.sentence


def test_few_samples_that_do_not_change_refute_nothing(selection: Selection) -> None:
    """A percentile bootstrap of no change has no width, so 20 unchanged samples once refuted an edit."""
    few = InterveneConfig(edits_base=("transplant",), edits_tuned=(), sizes=(), doses=(), leave_one_out=False)
    tasks = [Task("sum", TASKS[0].samples[:20], scorer("exact"), 2)]
    codes = {}
    for c in (conditions := plan(selection, {}, few)):
        n = 20 if (c.model == "rl") != (c.set_kind == "ceiling") else 0
        codes[c.name] = {"sum": "R" * n + "W" * (20 - n)}
    measured = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, None, {})
    found = intervention_results(selection, conditions, codes, tasks, few, measured)
    assert row(found, "base").verdict == "not distinguishable from random sets"
    assert row(found, "base").effect.high > 0.1


FOUR: dict[str, Any] = {"edits_base": ("clamp:3.0", "transplant"), "edits_tuned": ("ablate", "transplant")}


def test_pooled_p_values_are_adjusted_over_the_main_edits(
    selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight flips of 200 give p = 0.0078, and 0.031 over four edits, of which the others change nothing; six give 0.125."""
    monkeypatch.setitem(
        CLEAN, "base", "R" * 60 + "W" * 40
    )  # a ceiling of which these effects are not too small a share
    for n, verdict in ((4, "supported in part"), (3, "not clear of 0")):
        codes = "R" * (80 - n) + "W" * (20 + n)
        found = row(run(selection, {ABLATED: codes}, **FOUR))
        assert found.p_mcnemar == pytest.approx(2 * 0.5 ** (2 * n))
        assert found.p_mcnemar_holm == pytest.approx(8 * 0.5 ** (2 * n))
        assert found.n_tests == 4
        assert found.verdict == verdict
        assert f"McNemar p = {found.p_mcnemar:.2g} (Holm over 4: {found.p_mcnemar_holm:.2g})" in found.sentence


@pytest.mark.parametrize(
    ("draws", "beaten_by", "verdict"),
    [(20, 0, "supported"), (99, 0, "supported"), (99, 1, "not distinguishable from random sets")],
)
def test_randomization_p_values_are_adjusted_where_the_draws_allow(
    selection: Selection, draws: int, beaten_by: int, verdict: str
) -> None:
    """Of 99 draws, one that does as much gives p = 0.02, and 0.08 over four edits."""
    edited = {ABLATED: CLEAN["base"]} | {f"rl|ablate|random {draw}": CLEAN["base"] for draw in range(beaten_by)}
    found = run(selection, edited, n_random=draws, n_shuffled=draws, **FOUR)
    assert row(found).verdict == verdict
    assert row(found).p_random_holm == pytest.approx(min(1.0, 4 * row(found).p_random))
    cannot = "With 20 sets it cannot on the pooled row"
    assert (cannot in found.rule) == (draws == 20)


@pytest.mark.parametrize(("tests", "alpha", "draws"), [(4, 0.05, 79), (1, 0.05, 19), (5, 0.05, 99), (1, 0.01, 99)])
def test_draws_that_an_adjusted_p_needs(tests: int, alpha: float, draws: int) -> None:
    assert draws_needed(tests, alpha) == draws
    assert reachable(draws, tests, alpha)
    assert not reachable(draws - 1, tests, alpha)


def test_the_rule_says_when_draws_are_too_few() -> None:
    assert "79 of each kind are needed" in rule_text(InterveneConfig(n_random=20))
    assert "With 99 sets it can on the pooled row" in rule_text(InterveneConfig(n_random=99, n_shuffled=99))


def test_the_smallest_effect_is_in_results_and_sentences(selection: Selection) -> None:
    found = run(selection, {}, **FOUR)
    pooled, task = found.smallest["pooled"], found.smallest["sum"]
    assert (pooled.n, pooled.n_tests, pooled.flips, pooled.effect) == (2 * N, 4, 8, 0.04)
    assert (task.n, task.n_tests, task.flips, task.effect) == (N, 3, 7, 0.07)
    [line] = [line for line in sentences(found.to_dict()) if "could have found" in line]
    assert "pooled 4.0 points (8 of 200 samples, all one way; Holm over 4)" in line
    assert "pair, seen and sum 7.0 points (7 of 100 samples, all one way; Holm over 3)" in line
