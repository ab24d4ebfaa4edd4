"""A planted cause: rl is base plus one vector in one block's bias, and the dictionary has a feature for it.

Feature 0 is the cause: it writes that vector in rl and nothing in base. Feature 1 correlates without causing: its activation
differs most between the models, but it writes the same small vector in both.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.errors import ArtifactError, SelectionError
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import Task, split_halves
from mechprobe.interventions.collateral import CollateralTexts
from mechprobe.interventions.conditions.plan import choose_sets
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.stage import intervene
from mechprobe.interventions.verdicts.rule import Evidence, Numbers, judge
from mechprobe.localization.config import LocalizeConfig
from mechprobe.localization.stage import localize
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.result import Selection
from mechprobe.selection.stage import select_features
from mechprobe.stage_folder import read_manifest
from sae_training import Crosscoder
from tests.builders import build_family
from tests.planted import SITE, STRENGTH, D, answered_by_rl, cause_and_decoy, plant, saying, whole_at_the_limit

N = 32


@pytest.fixture(scope="module", autouse=True)
def _whole_responses() -> Iterator[None]:
    with whole_at_the_limit():
        yield


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_family(tmp_path_factory.mktemp("planted"), "neox", noise=0.0)


@pytest.fixture(scope="module")
def direction(paths: dict[str, Path]) -> torch.Tensor:
    """The unit vector that makes the model say "Q"."""
    return saying(paths["base"], "Q")


@pytest.fixture(scope="module")
def family(paths: dict[str, Path], direction: torch.Tensor) -> ModelFamily:
    plant(paths["rl"], direction)
    return ModelFamily.load(paths)


@pytest.fixture(scope="module")
def crosscoder(direction: torch.Tensor) -> Crosscoder:
    """Feature 0 is the cause and feature 1 the decoy; all models share the others."""
    return cause_and_decoy(direction, ("base", "sft", "rl"), 64)


@pytest.fixture(scope="module")
def tasks(family: ModelFamily) -> list[Task]:
    """Two tasks whose right answers are the responses of rl."""
    return [answered_by_rl(family, name, form, 2 * N) for name, form in (("sum", "{}+{}="), ("pair", "x{}y{}"))]


@pytest.fixture(scope="module")
def outcomes(family: ModelFamily, tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return evaluate_outcomes(family, tasks, tmp_path_factory.mktemp("evals") / "e")


def choose(
    crosscoder: Crosscoder, family: ModelFamily, outcomes: Outcomes, tasks: Sequence[Task], out: Path
) -> tuple[Selection, list[Task]]:
    halves = [split_halves(task, seed=0) for task in tasks]
    held_out = {second.name: [s.id for s in second.samples] for _, second in halves}
    config = SelectConfig(rule="top:1", n_controls=20)
    selection = select_features(crosscoder, family, outcomes, site=SITE, out=out, config=config, held_out=held_out)
    return selection, [second for _, second in halves]


@pytest.fixture(scope="module")
def selected(
    crosscoder: Crosscoder,
    family: ModelFamily,
    outcomes: Outcomes,
    tasks: list[Task],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Selection, list[Task]]:
    return choose(crosscoder, family, outcomes, tasks, tmp_path_factory.mktemp("sel") / "s")


@pytest.fixture(scope="module")
def results(
    crosscoder: Crosscoder,
    family: ModelFamily,
    selected: tuple[Selection, list[Task]],
    tmp_path_factory: pytest.TempPathFactory,
) -> InterventionResults:
    selection, halves = selected
    config = InterveneConfig(features="top:1", n_random=20, n_shuffled=20, n_per_task=None, sizes=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechprobe.interventions.stage.choose_sets", chosen_without_a_task)
        out = tmp_path_factory.mktemp("int") / "i"
        return intervene(family, crosscoder, selection, halves, out, config, collateral=three_texts(family))


def three_texts(family: ModelFamily) -> CollateralTexts:
    ids = (tuple(family.tokenizer(text).input_ids) for text in ("ab cd", "e", "12 + 3"))
    return CollateralTexts(tuple(ids), "three texts")


def chosen_without_a_task(*arguments: Any) -> tuple[Selection, dict[str, Selection]]:
    """The chosen sets, with the cause chosen without "sum" and the decoy without "pair"; the run has no task "gone"."""
    chosen, others = choose_sets(*arguments)
    chosen = copy.copy(chosen)
    object.__setattr__(chosen, "left_out", {"sum": (0,), "pair": (1,), "gone": (0,)})
    return chosen, others


def test_the_planted_cause_changes_behaviour(outcomes: Outcomes) -> None:
    for task in outcomes.tasks:
        assert sum(outcomes.right("rl", task)) == len(outcomes.sample_ids(task))
        assert sum(outcomes.right("base", task)) < 0.5 * len(outcomes.sample_ids(task))


def test_localize_finds_the_block(family: ModelFamily, tasks: list[Task], tmp_path: Path) -> None:
    ceilings = localize(family, tasks, out=tmp_path / "l", config=LocalizeConfig(n_per_task=16))
    assert ceilings.chosen == SITE
    assert ceilings.able
    assert ceilings.sites["resid_post.0"].sufficiency_share < 0.05
    for site in ("resid_post.1", "resid_post.2"):
        assert ceilings.sites[site].sufficiency_share == pytest.approx(1.0)
        assert ceilings.sites[site].necessity_share == pytest.approx(1.0)


def test_joint_attribution_picks_the_cause_and_score_the_decoy(selected: tuple[Selection, list[Task]]) -> None:
    selection, _ = selected
    assert selection.features == (0,)
    assert selection.choose("top:1", ranking="score").features == (1,)
    assert selection.agnostic == (0,)
    assert all(0 not in control for control in selection.controls)


def test_scores_equal_a_naive_second_implementation(
    family: ModelFamily, crosscoder: Crosscoder, outcomes: Outcomes, selected: tuple[Selection, list[Task]]
) -> None:
    """One sample, one position and one feature at a time, in float64, without the library's batching or read-outs."""
    selection, halves = selected
    special = set(family.tokenizer.all_special_ids)
    from mechprobe.models.residuals import residuals_plain
    from mechprobe.types import Site

    encoder, b_enc = crosscoder.encoder.detach().double(), crosscoder.b_enc.detach().double()
    decoder = crosscoder.decoder.detach().double()
    for row, task in enumerate(selection.scores.tasks):
        held = {s.id for half in halves for s in half.samples}
        ids = [k for k in outcomes.gained(task, base="base", tuned="rl") if k not in held]
        score, joint = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
        for sample_id in ids:
            tokens = family.tokenizer(outcomes.samples[sample_id].prompt).input_ids
            tokens = [*tokens, *outcomes.record("rl", task, sample_id).response_ids]
            batch = torch.tensor([tokens])
            x = {
                m.name: residuals_plain(m, batch, torch.ones_like(batch), [Site.parse(SITE)])[Site.parse(SITE)][
                    0
                ].double()
                for m in family
            }
            kept = [p for p, token in enumerate(tokens) if token not in special]
            for p in kept:

                def code(slots: list[torch.Tensor]) -> torch.Tensor:
                    return (encoder @ torch.cat(slots) + b_enc).clamp(min=0)

                score += (code([x["rl"][p]] * 3) - code([x["base"][p]] * 3)) / len(kept) / len(ids)
                joint += code([x["base"][p], x["sft"][p], x["rl"][p]]) / len(kept) / len(ids)
        joint *= (decoder[:, 2 * D :] - decoder[:, :D]).norm(dim=1)
        assert torch.allclose(torch.as_tensor(selection.scores.score[row]), score, rtol=1e-4, atol=1e-5)
        assert torch.allclose(torch.as_tensor(selection.scores.joint[row]), joint, rtol=1e-4, atol=1e-5)


def test_the_cause_carries_the_whole_ceiling_both_ways(results: InterventionResults) -> None:
    clean = {model: results.condition(f"{model}|clean").accuracy["pooled"][0] for model in ("base", "rl")}
    assert results.condition("base|transplant|top:1").accuracy["pooled"][0] == clean["rl"] == 1.0
    assert results.condition("rl|transplant|top:1").accuracy["pooled"][0] == clean["base"]
    assert results.condition("rl|ablate|top:1").accuracy["pooled"][0] == clean["base"]
    assert results.condition("rl|transplant|top:1").share_of_ceiling["pooled"] == pytest.approx(1.0)
    pooled = {(row.model, row.edit): row for row in results.verdicts if row.task == "pooled"}
    assert pooled["base", "transplant"].verdict == "supported", pooled["base", "transplant"].sentence
    assert pooled["base", "transplant"].n_random == pooled["base", "transplant"].n_equal_norm == 20
    # In a random model every change of this norm ruins the answers, so a loss of accuracy is not specific.
    for edit in ("transplant", "ablate"):
        row = pooled["rl", edit]
        ruined = ("not distinguishable from changes of equal norm", "not distinguishable from random sets")
        assert row.verdict in ("supported", *ruined), row.sentence
        assert (
            row.verdict != ruined[1] or row.p_rescaled > 0.05
        )  # random sets do it at the norm of the set, not at their own
        assert row.p_random < 0.05


def test_matched_random_sets_have_no_effect(results: InterventionResults) -> None:
    random = [row for row in results.conditions if row.set_kind == "random" and row.edit == "transplant"]
    assert len(random) == 40
    assert all(row.accuracy_delta["pooled"][0] == 0 for row in random)
    assert all(row.change_norm == pytest.approx(0.0, abs=1e-6) for row in random)
    assert results.condition("base|transplant|top:1").change_norm == pytest.approx(STRENGTH, rel=1e-3)


def test_the_decoy_is_not_called_causal(results: InterventionResults) -> None:
    decoy = results.condition("base|transplant|top:1 by score")
    assert decoy.accuracy_delta["pooled"][0] == 0


def test_the_decoy_as_the_set_under_test_is_not_causal(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]], tmp_path: Path
) -> None:
    selection, halves = selected
    config = InterveneConfig(
        features="top:1", ranking="score", compare=(), n_random=20, n_shuffled=20, n_per_task=16, sizes=(), doses=()
    )
    found = intervene(family, crosscoder, selection, halves, tmp_path / "i", config)
    pooled = {(row.model, row.edit): row.verdict for row in found.verdicts if row.task == "pooled"}
    # 32 samples are too few to refute
    assert pooled["base", "transplant"] == pooled["rl", "transplant"] == "not distinguishable from random sets"
    assert pooled["rl", "ablate"] != "supported"


def test_every_task_has_a_verdict(results: InterventionResults) -> None:
    rows = {(row.model, row.edit, row.task): row for row in results.verdicts}
    for task in ("sum", "pair"):
        row = rows["base", "transplant", task]
        assert row.verdict == "supported", row.sentence
        assert row.p_mcnemar <= row.p_mcnemar_holm < 0.001
        assert row.sentence.endswith(": supported.")
    assert rows["base", "transplant", "pooled"].p_mcnemar < 1e-6


def test_a_task_with_too_few_samples_has_the_reason_as_verdict(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]], tmp_path: Path
) -> None:
    selection, halves = selected
    small = [halves[0].take(5), halves[1]]
    config = InterveneConfig(
        features="top:1", trained=("pair",), edits_tuned=(), edits_base=("transplant",), sizes=(), doses=(), compare=(),
        n_random=1, n_shuffled=1, leave_one_out=False,
    )  # fmt: skip
    found = intervene(family, crosscoder, selection, small, tmp_path / "i", config)
    verdict = {row.task: row.verdict for row in found.verdicts}
    assert verdict == {
        "sum": "no verdict: 5 samples, fewer than 20",
        "pair": "no verdict: post-training saw this task",
        "pooled": "no verdict: 5 samples, fewer than 20",
    }
    assert found.collateral is None
    assert found.left_out == []


def test_sets_chosen_without_a_task_are_judged_on_it(results: InterventionResults) -> None:
    rows = {(row.model, row.task): row for row in results.left_out}
    assert set(rows) == {(model, task) for model in ("base", "rl") for task in ("sum", "pair")}
    cause, decoy = rows["base", "sum"], rows["base", "pair"]
    assert (cause.features, cause.n_features, cause.n_shared) == ("top:1 without sum", 1, 1)
    assert (decoy.n_features, decoy.n_shared) == (1, 0)
    assert cause.verdict == "supported", cause.sentence
    assert cause.share == pytest.approx(1.0, abs=0.1)
    assert decoy.verdict == "not distinguishable from random sets", decoy.sentence  # 16 samples are too few to refute
    assert decoy.effect[0] == 0
    assert decoy.effect_with[0] > 0.4
    assert decoy.verdict_with == "supported"
    assert "left_out" not in {row.set_kind for row in results.conditions}


def test_conditions_hold_their_collateral(results: InterventionResults) -> None:
    assert results.collateral.source == "three texts"
    assert results.other_tasks == []
    measured = {row.name: row.collateral for row in results.conditions if row.collateral}
    assert {"base|transplant|top:1", "rl|ablate|top:1", "base|patch|whole residual"} <= set(measured)
    assert results.condition("base|transplant|random 0").collateral is None
    # the cause is the whole difference between the models, so transplanting it equals patching the residual
    cause, whole = measured["base|transplant|top:1"].kl, measured["base|patch|whole residual"].kl
    assert cause[0] == pytest.approx(whole[0], rel=1e-3)
    assert whole[0] > 0.01
    assert measured["base|transplant|top:1 by score"].kl[0] < 0.01 * whole[0]


def test_an_empty_set_has_no_mean(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]], tmp_path: Path
) -> None:
    selection, halves = selected
    config = InterveneConfig(
        features="ids:,",
        n_random=0,
        n_shuffled=1,
        n_per_task=2,
        doses=(),
        edits_tuned=("transplant",),
        edits_base=("transplant",),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervene(family, crosscoder, selection, halves, tmp_path / "i", config)
    assert (found.control_match, found.silent.per_task) == (None, {"sum": 0, "pair": 0})
    assert found.sizes == {}


def test_a_transplant_is_judged_under_the_configured_read_out(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]], tmp_path: Path
) -> None:
    """Under the joint read-out the decoy has one activation and equal decoders; only under swap does it change the residual."""
    selection, halves = selected
    joint = InterveneConfig(
        features="ids:1", n_random=1, n_shuffled=1, n_per_task=4, sizes=(), doses=(), edits_tuned=("transplant",),
        edits_base=("transplant",), transplant_readout="joint",
    )  # fmt: skip
    swap = joint.replace(transplant_readout="swap")
    runs = [
        intervene(family, crosscoder, selection, halves, tmp_path / name, config, collateral=three_texts(family))
        for name, config in (("joint", joint), ("swap", swap))
    ]
    for host in ("base", "rl"):
        name = f"{host}|transplant|ids:1"
        main, other = (
            [run.condition(label) for run, label in zip(runs, labels, strict=True)]
            for labels in ((name, f"{name}, joint read-out"), (f"{name}, swap read-out", name))
        )
        for number in ("accuracy", "collateral"):
            assert getattr(main[0], number) == getattr(main[1], number)
            assert getattr(other[0], number) == getattr(other[1], number)
        assert main[0].collateral.kl[0] == pytest.approx(0.0, abs=1e-9)
        assert other[0].collateral.kl[0] > 1e-6
    assert "transplant_readout" not in read_manifest(tmp_path / "swap")["config"]  # the conditions hold it
    with pytest.raises(ArtifactError, match=r"config\.sets"):
        intervene(family, crosscoder, selection, halves, tmp_path / "swap", joint, collateral=three_texts(family))


def test_flip_rates_have_the_denominators_of_their_names(results: InterventionResults) -> None:
    row, clean = results.condition("base|transplant|top:1"), results.condition("base|clean")
    n, right = clean.accuracy["pooled"][3], round(clean.accuracy["pooled"][0] * clean.accuracy["pooled"][3])
    assert row.flip_rate_of_right["pooled"][3] == right
    assert row.flip_rate_of_wrong["pooled"][3] == n - right
    assert row.flip_rate_of_wrong["pooled"][0] == 1.0


def test_an_interrupted_run_ends_in_the_same_bytes(
    crosscoder: Crosscoder,
    family: ModelFamily,
    selected: tuple[Selection, list[Task]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection, halves = selected
    config = InterveneConfig(features="top:1", n_random=2, n_shuffled=1, n_per_task=4, sizes=(), doses=())
    intervene(family, crosscoder, selection, halves, tmp_path / "whole", config)
    import mechprobe.interventions.stage as module

    real, count = module.write_json, 0

    def failing(path: Path, data: object) -> None:
        nonlocal count
        count += path.name.startswith("part-0")
        if count in (3, 9):  # in the middle of a batch of conditions
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(module, "write_json", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            intervene(family, crosscoder, selection, halves, tmp_path / "cut", config)
    intervene(family, crosscoder, selection, halves, tmp_path / "cut", config)
    for name in ("results.json", "outcomes.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_an_identical_copy_gives_nothing_to_select(
    crosscoder: Crosscoder, family: ModelFamily, tasks: list[Task], tmp_path: Path
) -> None:
    base = family["base"].path
    twins = ModelFamily.load({"base": base, "sft": base, "rl": base})
    outcomes = evaluate_outcomes(twins, tasks, tmp_path / "e")
    with pytest.raises(SelectionError, match="rl"):
        choose(crosscoder, twins, outcomes, tasks, tmp_path / "s")


FULL = (0.5, 0.4, 0.6)
SHARES: dict[str, Any] = {"share": (1.0, 0.8, 1.2), "beyond": (0.0, -0.1, 0.1)}


def evidence(
    effect: Numbers,
    ceiling: Numbers,
    gap: float,
    p_random: float,
    p_equal_norm: float,
    n: int,
    falls: bool,
    **more: Any,
) -> Evidence:
    """An effect as large as its ceiling, where ``more`` says nothing else."""
    return Evidence(effect, ceiling, gap, p_random, p_equal_norm, n, falls, **{**SHARES, **more})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (evidence(FULL, (0.2, 0.1, 0.3), 0.5, 0.04, 0.04, 99, False), "this site cannot tell"),  # 40 % of the gap
        (evidence(FULL, FULL, 0.0, 0.04, 0.04, 99, False), "this site cannot tell"),  # no gap
        (
            evidence((0.3, 0.2, 0.4), (0.02, -0.02, 0.06), 0.02, 0.04, 0.04, 99, True),
            "this site cannot tell",
        ),  # the null
        (evidence(FULL, FULL, 0.5, math.nan, 0.04, 99, False), "no verdict: no matched random sets were run"),
        (evidence(FULL, FULL, 0.5, 0.04, math.nan, 99, False), "no verdict: no changes of equal norm were run"),
        (evidence((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1.0, 0.04, 0.04, 3, False), "no verdict: 3 samples, fewer than 20"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, beyond=(0.3, 0.01, 0.4)), "damage"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, False, beyond=(0.3, 0.2, 0.4)), "supported"),  # a gain beyond rl's
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, elsewhere="one task is destroyed"), "damage"),
        (evidence((-0.4, -0.5, -0.3), FULL, 0.5, 1.0, 1.0, 99, False), "damage"),  # a clamp breaks the base
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, broken=(0.2, 0.11, 0.3)), "damage"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, False, broken=(0.2, 0.11, 0.3)), "damage"),  # in base, too
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, broken=(0.2, 0.09, 0.3)), "supported"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True), "supported"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, share=(0.6, 0.5, 0.7)), "supported"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, share=(0.6, 0.49, 0.7)), "supported in part"),
        (evidence((0.04, 0.02, 0.06), FULL, 0.5, 0.04, 0.04, 99, True, share=(0.08, 0.03, 0.11)), "supported in part"),
        (evidence((0.04, 0.01, 0.045), FULL, 0.5, 0.04, 0.04, 99, False, share=(0.08, 0.02, 0.09)), "refuted"),
        (evidence((0.0, -0.02, 0.02), FULL, 0.5, 0.5, 0.5, 50, True, share=(0.0, -0.04, 0.04)), "refuted"),
        (
            evidence((0.0, -0.02, 0.02), FULL, 0.5, 0.5, 0.5, 49, True, share=(0.0, -0.04, 0.04)),
            "not distinguishable from random sets",
        ),  # too few samples to refute
        (evidence(FULL, FULL, 0.5, 0.06, 0.04, 99, True), "not distinguishable from random sets"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.06, 99, True), "not distinguishable from changes of equal norm"),
        (evidence((0.1, -0.1, 0.3), FULL, 0.5, 0.04, 0.04, 99, True), "not clear of 0"),
        (evidence((0.1, -0.1, 0.3), FULL, 0.5, 0.06, 0.04, 99, True), "not distinguishable from random sets"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, p_paired=0.06), "not clear of 0"),
        (evidence(FULL, FULL, 0.5, 0.04, 0.04, 99, True, p_paired=0.05), "supported"),
    ],
)
def test_verdict_rule_by_hand(found: Evidence, expected: str) -> None:
    assert judge(found, InterveneConfig()) == expected


def test_too_few_control_sets_give_no_verdict() -> None:
    found = evidence(FULL, FULL, 0.5, 0.01, 0.01, 99, False)
    why = "no verdict: with 10 matched random sets no p can reach 0.05; 19 or more are needed"
    assert judge(found, InterveneConfig(n_random=10, n_shuffled=20)) == why
    why = "no verdict: with 4 changes of equal norm no p can reach 0.05; 19 or more are needed"
    assert judge(found, InterveneConfig(n_random=20, n_shuffled=4)) == why


def test_a_vector_at_the_last_prompt_token_acts_there_alone(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]]
) -> None:
    """The planted cause is one vector at every position, so only adding it at every position makes the whole change."""
    from mechprobe.interventions.conditions.plan import EVERYWHERE, LAST_PROMPT_TOKEN, Condition
    from mechprobe.interventions.conditions.runner import Runner

    selection, halves = selected
    runner = Runner(family, crosscoder, selection, halves, InterveneConfig())
    every, last, clean = (
        runner.run(Condition(name, "base", "vector", name, "baseline", how, donor="rl"))
        for name, how in ((EVERYWHERE, "vector"), (LAST_PROMPT_TOKEN, "vector"), ("clean", "clean"))
    )
    assert set("".join(every.values())) == {"R"}
    assert every != last != clean


def test_results_of_another_dictionary_are_not_returned(
    crosscoder: Crosscoder, family: ModelFamily, selected: tuple[Selection, list[Task]], tmp_path: Path
) -> None:
    from dataclasses import replace as with_changes

    from mechprobe.errors import ArtifactError

    selection, halves = selected
    config = InterveneConfig(features="ids:1,2", n_random=0, n_shuffled=1, n_per_task=2, sizes=(), doses=(), compare=())
    intervene(family, crosscoder, selection, halves, tmp_path / "i", config)
    other = Crosscoder(crosscoder.config)
    other.load_state_dict(crosscoder.state_dict())
    with torch.no_grad():
        other.decoder.mul_(3.0)
    changed = with_changes(selection, crosscoder=other.fingerprint)
    with pytest.raises(ArtifactError, match="crosscoder"):
        intervene(family, other, changed, halves, tmp_path / "i", config)
    with pytest.raises(ArtifactError, match=other.fingerprint[:12]):
        intervene(family, other, selection, halves, tmp_path / "j", config)
