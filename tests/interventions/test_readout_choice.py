"""The read-out of transplants is chosen on the selection half: planted differences that decoders, activations or neither carry."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechprobe.errors import ArtifactError, SelectionError
from mechprobe.evals.tasks import Task, split_halves
from mechprobe.interventions.conditions.fitting import fitting_tasks
from mechprobe.interventions.conditions.readout_choice import choose_readout, measure_shares
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.stage import intervene
from mechprobe.models.family import ModelFamily
from mechprobe.report.tables.interventions import sentences
from mechprobe.selection.result import Selection, choose
from mechprobe.stage_folder import read_manifest
from sae_training import Crosscoder, CrosscoderConfig
from tests.builders import build_family
from tests.interventions.test_checks import scores
from tests.planted import SITE, STRENGTH, D, answered_by_rl, plant, saying, whole_at_the_limit

NAMES = ("base", "sft", "rl")
Halves = list[tuple[Task, Task]]
CONFIG = InterveneConfig(
    n_random=2, n_shuffled=2, n_per_task=4, edits_base=("transplant",), edits_tuned=("transplant",), sizes=(), doses=(),
    compare=(), leave_one_out=False, rivals=(), rival_samples=4, collateral_texts=0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _whole_responses() -> Iterator[None]:
    with whole_at_the_limit():
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFamily, torch.Tensor, Halves]:
    """rl is base plus a vector on every token; with the direction of the vector, and both halves of two tasks."""
    paths = build_family(tmp_path_factory.mktemp("choice"), "neox", noise=0.0)
    direction = saying(paths["base"], "Q")
    plant(paths["rl"], direction)
    family = ModelFamily.load(paths)
    tasks = [answered_by_rl(family, name, form, 32) for name, form in (("sum", "{}+{}="), ("pair", "x{}y{}"))]
    return family, direction, [split_halves(task, seed=0) for task in tasks]


def dictionary(direction: torch.Tensor, how: str) -> Crosscoder:
    """Feature 0 writes the vector: by decoders that turn, by an activation that moves, or by one that only both models have."""
    made = Crosscoder(CrosscoderConfig(n_models=3, d_model=D, d_sae=48, k=4, variant="l1", model_names=NAMES))
    made.set_scale([1.0] * 3)
    with torch.no_grad():
        made.b_dec_flat.zero_()
        shared = torch.randn(48, D, generator=torch.Generator().manual_seed(0))
        made.decoder.copy_((0.1 * shared / shared.norm(dim=1, keepdim=True)).repeat(1, 3))
        made.encoder.zero_()
        made.b_enc.fill_(0.2)
        reads = direction / STRENGTH  # 1 more in rl than in base
        made.decoder[0] = (STRENGTH * direction).repeat(3)
        if how == "moves":
            made.b_enc[0] = 9.0
            made.encoder[0] = reads.repeat(3) / 3
        else:
            made.decoder[0, : 2 * D] = 0.0
            made.b_enc[0] = 1.0
        if how == "both models":
            made.b_enc[0] = 0.0
            made.encoder[0, 2 * D :], made.encoder[0, :D] = reads, -reads
    return made.eval()


def runner_of(planted: Any, how: str, rule: str = "ids:0", **settings: Any) -> tuple[Runner, SelectionTokens]:
    family, direction, halves = planted
    crosscoder = dictionary(direction, how)
    chosen = choose(scores(crosscoder), rule, site=SITE, crosscoder=crosscoder.fingerprint, n_controls=2)
    runner = Runner(family, crosscoder, chosen, [second for _, second in halves], CONFIG.replace(**settings))
    return runner, SelectionTokens(runner, fitting_tasks(runner, [first for first, _ in halves]))


@pytest.mark.parametrize(
    ("how", "shares", "chosen", "tied"),
    [("moves", (0, 1), "swap", False), ("turns", (1, 1), "joint", True), ("both models", (1, 0), "joint", False)],
)
def test_the_read_out_is_the_one_that_writes_the_difference(
    planted: Any, how: str, shares: tuple[int, int], chosen: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, tokens = runner_of(planted, how)
    monkeypatch.setattr("mechprobe.interventions.conditions.readout_choice._MOST_ACTS", 7 * 48)  # 7 tokens at a time
    found = choose_readout(runner, tokens)
    assert found.chosen == chosen
    for mode, share in zip(("joint", "swap"), shares, strict=True):
        assert found.shares[mode].selected == pytest.approx(share, abs=1e-3)
        assert found.shares[mode].every == pytest.approx(share, abs=1e-3)  # no other feature differs
    assert found.n_samples == 8
    special = set(runner.family.tokenizer.all_special_ids)
    assert found.n_tokens == sum(token not in special for ids, _ in tokens.sequences for token in ids)
    percent = [f"{round(100 * found.shares[mode].selected)} % under {mode}" for mode in ("joint", "swap")]
    assert f"the transplant of ids:0 writes {' and '.join(percent)}" in found.sentence
    assert ("they tie" in found.sentence) == tied


def test_other_sets_write_nothing_and_tie(planted: Any) -> None:
    found = choose_readout(*runner_of(planted, "moves", "ids:5"))
    assert found.chosen == "joint"
    assert found.shares["swap"].selected == pytest.approx(0.0, abs=1e-6)
    assert found.shares["swap"].every == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("positions", "counts"),
    [("prompt", "prompt"), ("response", "response"), ("last_prompt_token", "last"), ("all:tokens=999", "none")],
)
def test_only_tokens_that_edits_may_change_are_read(planted: Any, positions: str, counts: str) -> None:
    runner, tokens = runner_of(planted, "moves", positions=positions)
    special = set(runner.family.tokenizer.all_special_ids)
    places = [(ids, start, place) for ids, start in tokens.sequences for place in range(len(ids))]
    within = {
        "prompt": lambda start, place: place < start,
        "response": lambda start, place: place >= start,
        "last": lambda start, place: place == start - 1,
        "none": lambda start, place: False,
    }[counts]
    expected = sum(within(start, place) and ids[place] not in special for ids, start, place in places)
    found = choose_readout(runner, tokens)
    assert found.n_tokens == expected
    if counts == "none":
        assert found.chosen == "joint"
        assert "do not differ" in found.sentence


@pytest.fixture(scope="module")
def given(planted: Any) -> tuple[ModelFamily, Crosscoder, Selection, list[Task], list[Task]]:
    family, direction, halves = planted
    crosscoder = dictionary(direction, "moves")
    chosen = choose(scores(crosscoder), "ids:0", site=SITE, crosscoder=crosscoder.fingerprint, n_controls=2)
    return family, crosscoder, chosen, [second for _, second in halves], [first for first, _ in halves]


def run(given: Any, out: Path, config: InterveneConfig = CONFIG) -> InterventionResults:
    family, crosscoder, selection, judging, selecting = given
    return intervene(family, crosscoder, selection, judging, out, config, selecting=selecting)


def test_a_run_uses_the_choice_everywhere_and_says_so(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []

    def spied(runner: Runner, tokens: SelectionTokens) -> Any:
        read.append({sample.id for task in tokens.tasks for sample in task.samples})
        return measure_shares(runner, tokens)

    monkeypatch.setattr("mechprobe.interventions.conditions.readout_choice.measure_shares", spied)
    found = run(given, tmp_path / "i")
    assert found.readout_choice is not None
    assert found.readout_choice.chosen == "swap"
    assert found.readouts_of_edits["transplant"] == "swap"
    assert len(read) == 1
    assert read[0].isdisjoint(sample for samples in found.samples.values() for sample in samples)
    by_readout = {row.readout: set() for row in found.conditions if row.edit == "transplant"}
    for row in found.conditions:
        if row.edit == "transplant":
            by_readout[row.readout].add(row.set_kind)
    assert by_readout["joint"] == {"compare"}  # the other read-out is shown, without controls
    assert by_readout["swap"] == {"selected", "random", "rescaled", "shuffled", "shifted"}
    assert all(row.readout == "swap" for row in found.verdicts)
    assert found.condition("base|transplant|ids:0").accuracy["pooled"].value == pytest.approx(1.0)
    assert found.condition("base|transplant|ids:0, joint read-out").accuracy_delta["pooled"].value == 0
    assert found.readout_choice.sentence in sentences(found.to_dict())
    config = read_manifest(tmp_path / "i")["config"]
    assert config["transplant_readout"] == "auto"
    assert config["fitting"]
    with pytest.raises(ArtifactError, match=r"config\.(fitting|sets|transplant_readout)"):
        run(given, tmp_path / "i", CONFIG.replace(transplant_readout="swap"))


def test_a_resumed_run_keeps_its_choice(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run stops after the choice; the second must not measure again."""
    whole = run(given, tmp_path / "whole").to_dict()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mechprobe.interventions.stage._run_all", stop)
        with pytest.raises(KeyboardInterrupt):
            run(given, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr("mechprobe.interventions.conditions.readout_choice.measure_shares", stop)
        assert run(given, tmp_path / "cut").to_dict() == whole
    assert not list((tmp_path / "cut").glob("part-*"))


def test_without_a_selection_half_it_is_joint_and_says_why(given: Any, tmp_path: Path) -> None:
    family, crosscoder, selection, judging, _ = given
    found = intervene(family, crosscoder, selection, judging, tmp_path / "i", CONFIG)
    assert found.readout_choice is not None
    assert (found.readout_choice.chosen, found.readout_choice.n_tokens) == ("joint", 0)
    assert "no selection half was given" in found.readout_choice.sentence
    assert found.readouts_of_edits["transplant"] == "joint"


@pytest.mark.parametrize("settings", [{"transplant_readout": "joint"}, {"edits_base": ("clamp:3",), "edits_tuned": ()}])
def test_nothing_is_chosen_where_it_is_named_or_nothing_is_transplanted(
    given: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    found = run(given, tmp_path / "i", CONFIG.replace(**settings))
    assert found.readout_choice is None
    assert "readout_choice" not in found.to_dict()


def test_random_sets_match_what_the_read_out_writes(given: Any, tmp_path: Path) -> None:
    selection = given[2]
    swap = selection.under("swap", seed=0)
    assert swap.transplant_match is not None
    covariates = selection.scores.swap_covariates
    assert covariates.difference is not None
    assert selection.scores.swap_write is not None
    np.testing.assert_array_equal(covariates.difference, selection.scores.swap_write.mean(axis=0))
    assert swap.transplant_match.covariates["difference"].selected == pytest.approx(covariates.difference[0])
    assert selection.under("joint") is selection
    assert swap.controls == selection.controls
    run(given, tmp_path / "i")  # chooses swap
    explicit = run(given, tmp_path / "j", CONFIG.replace(transplant_readout="swap"))
    chosen = InterventionResults.load(tmp_path / "i").to_dict()
    assert explicit.to_dict()["conditions"] == chosen["conditions"]


def test_a_selection_without_what_swap_writes_is_refused_first(given: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    family, crosscoder, selection, judging, selecting = given
    old = replace(selection, scores=replace(selection.scores, swap_write=None))
    with pytest.raises(SelectionError, match="mechprobe select --force"):
        intervene(family, crosscoder, old, judging, tmp_path / "i", CONFIG, selecting=selecting)
    assert not (tmp_path / "i").exists()
    assert intervene(family, crosscoder, old, judging, tmp_path / "i", CONFIG.replace(transplant_readout="joint"))
