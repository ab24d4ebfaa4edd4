"""``mechprobe probe`` on the shipped lab at a small size: every part, resumption, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.drift.probe import readings
from mechprobe.drift.probe.config import LinearConfig, ProbeConfig
from mechprobe.drift.probe.items import Items
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.probe.stage import _dictionary
from mechprobe.errors import ConfigError
from mechprobe.evals import skills
from mechprobe.evals.stage import load_outcomes
from mechprobe.lab.summary import shipped
from mechprobe.records import Outcome, Outcomes, Sample, write_jsonl
from mechprobe.stage_folder import Stage
from tests.small_dictionaries import make_crosscoder

LAB = shipped("shared-marker")
MODELS = {
    "base": LAB / "base",
    "rl@step_000012": LAB / "checkpoints" / "rl" / "step_000012",
    "rl": LAB / "rl",
    "sft": LAB / "sft",
}
SETTINGS = [
    "evaluate.n_per_task=8", "tasks.max_new_tokens=20", "probe.draws=100", "probe.final_steps={rl=60}", "probe.linear.items=40",
    "probe.linear.folds=3", "probe.linear.sites=['resid_post.2']", "tasks.trained=['calculation']", "near=['base','rl']",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished evaluate stage and probe."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    words = ["--run", str(folder), "--models", *(f"{name}={path}" for name, path in MODELS.items()), "--set"]
    tasks = [f"tasks.file={LAB / 'tasks.jsonl'}", "tasks.scorer=final:ANS"]
    assert main(["probe", *words, *tasks, *SETTINGS]) == 0  # makes the evaluate stage, which is missing
    return folder


def test_profiles_are_the_accuracies_of_the_evaluate_stage(run: Path) -> None:
    found, outcomes = ProbeResult.load(run / "probe"), load_outcomes(run / "evals")
    assert found.models == ("base", "rl@step_000012", "rl", "sft")
    assert (found.n_items, found.labelled) == (40, True)
    behaviour = found.behaviour["right"]
    assert behaviour.skills == dict.fromkeys(sorted(outcomes.tasks), 8)
    assert behaviour.cells["calculation/mathematics"] == 8
    for model in found.models:
        for task in outcomes.tasks:
            assert behaviour.profiles[model][task].raw.value == pytest.approx(np.mean(outcomes.right(model, task)))
    gains = [behaviour.gains["rl"][skill].corrected.value for skill in behaviour.skills]
    assert behaviour.arms["rl"].points[-1].drift_l1.value == pytest.approx(np.abs(gains).sum())
    assert [point.model for point in behaviour.arms["rl"].points] == ["rl@step_000012", "rl"]
    assert behaviour.arms["rl"].points[0].progress == pytest.approx(0.2)
    assert set(behaviour.transfer) == {"rl@step_000012", "rl", "sft"}
    assert len(found.to_pandas()) == 4 * 5


def test_probes_read_the_skill_of_the_prompt_and_shuffled_labels_do_not(run: Path) -> None:
    found = ProbeResult.load(run / "probe")
    probes = {(each.model, each.target): each for each in found.linear}
    assert set(probes) == {(model, target) for model in found.models for target in ("skill", "domain")}
    skill = probes["base", "skill"]
    assert skill.accuracy.value > 0.9
    assert skill.control.value < 0.6
    assert skill.n_items == 40
    assert skill.held_out == "items"
    assert any("`mechprobe train-sae` makes one" in note for note in found.notes)
    assert not found.correlations


def test_a_finished_stage_is_read_back_and_an_interrupted_one_resumes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = mp.ModelFamily.load(MODELS)
    config = ProbeConfig(draws=100, linear=LinearConfig(items=10, folds=2, sites=("resid_post.0",)))
    read, broken, real = list[str](), [True], readings._of_model

    def interrupted(prompts: readings.Prompts, name: str) -> object:
        if broken and len(read) == 2:
            raise MemoryError
        read.append(name)
        return real(prompts, name)

    monkeypatch.setattr(readings, "_of_model", interrupted)
    with pytest.raises(MemoryError):
        mp.drift.probe(run / "evals", family, out=tmp_path / "probe", config=config)
    read.clear()
    broken.clear()
    found = mp.drift.probe(run / "evals", family, out=tmp_path / "probe", config=config)
    assert read == ["rl", "sft"]
    assert not list((tmp_path / "probe").glob("linear-*"))
    again = mp.drift.probe(run / "evals", family, out=tmp_path / "probe", config=config)
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())
    mp.drift.probe(run / "evals", family, out=tmp_path / "whole", config=config)
    assert (tmp_path / "whole" / "probe.json").read_bytes() == (tmp_path / "probe" / "probe.json").read_bytes()


@pytest.mark.slow
def test_everything_beside_it_is_used_when_it_is_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    small = [
        f"prompts.file={LAB / 'prompts.jsonl'}", "cache.sites=['resid_post.2']", "cache.max_prompts=40", "cache.responses=['base@1.0']",
        "cache.max_new_tokens=16", "train_sae.d_sae=64", "train_sae.k=6", "train_sae.n_tokens=8192", "drift.draws=100",
    ]  # fmt: skip
    for command in ("train-sae", "drift", "weights"):
        assert main([command, "--run", str(copy), "--set", *small]) == 0, command
    capsys.readouterr()
    assert main(["probe", "--run", str(copy)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["probe", "--run", str(copy), "--force", "--json"]) == 0
    shown, found = json.loads(capsys.readouterr().out), ProbeResult.load(copy / "probe")
    assert shown["base"] == "base"
    assert {(each.model, each.skill) for each in found.use} >= {("rl", "simulation"), ("base", "calculation")}
    assert all(each.drift.value == 0 for each in found.use if each.model == "base")
    assert {"relative norm of the update", "stable_rank"} <= found.numbers.keys()
    assert any(name.startswith("KL on ") for name in found.numbers)
    assert found.numbers["relative norm of the update"].keys() == {"rl@step_000012", "rl", "sft"}
    assert not [each for each in found.correlations if np.isfinite(each.p)]  # two checkpoints of rl are too few


def test_a_dry_run_writes_nothing_and_names_what_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert main(["probe", "--run", str(run), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "4 models × 40 items" in printed
    assert "arm rl: rl@step_000012, rl (spaced by steps)" in printed
    assert "Nothing was written" in printed
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["probe.base=nobody"], "probe.base is 'nobody'"),
        (["probe.trained=['singing']"], "tasks.trained (or probe.trained) names 'singing'"),
        (["probe.linear.sites=['resid_post.9']"], "resid_post.9 does not exist"),
        (["probe.linear.c=0"], "LinearConfig: c = 0 is not accepted"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    run: Path, settings: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--run", str(run), "--out", str(tmp_path / "probe"), "--set", *settings]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "probe").exists()


def test_a_bad_or_other_tasks_file_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tasks.jsonl"
    item = skills.generate("diagnostic", domain="mathematics", family="worked_sums", n=1, seed=1)[0]
    for fields, message in (({"answer": "heap"}, "tasks.jsonl:1: the answer 'heap'"), ({}, "No id of the evaluated")):
        write_jsonl(file, [item.to_json() | fields])
        assert main(["probe", "--run", str(run), "--out", str(tmp_path / "p"), "--set", f"tasks.file={file}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "p").exists()


def test_a_model_without_outcomes_and_outcomes_without_a_model_are_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"has outcomes of sft, not among the models; add what is missing to \[models\] .* --models NAME=PATH \(sft=FOLDER\)",
    ):
        mp.drift.probe(
            run / "evals", mp.ModelFamily.load({k: v for k, v in MODELS.items() if k != "sft"}), out=tmp_path / "p"
        )
    found = mp.drift.probe(run / "evals", out=tmp_path / "p", config=ProbeConfig(draws=100))
    assert not found.linear
    assert any("no models were given" in note for note in found.notes)


def test_any_tasks_file_works_with_task_names_for_skills(tmp_path: Path) -> None:
    samples = [Sample(f"{task}-{k}", task, "q", "a") for task in ("one", "two") for k in range(6)]
    records = [
        Outcome(each.id, each.task, model, "right" if (k % 2 or model == "rl") else "wrong", "a", 1, draw=draw)
        for model in ("base", "rl")
        for k, each in enumerate(samples)
        for draw in range(2)
    ]
    outcomes = Outcomes(records, samples)
    lines = [
        {"id": each.id, "task": each.task, "prompt": "q", "answer": "a", "options": ["a", "b", "c", "d"]}
        for each in samples
    ]
    write_jsonl(tmp_path / "tasks.jsonl", lines)
    items = Items.of(outcomes, tmp_path / "tasks.jsonl")
    scores = items.all_scores(outcomes, ("base", "rl"))
    assert list(scores) == ["right"]
    assert scores["right"].groups("skill") == scores["right"].groups("cell") == ("one", "two")
    assert scores["right"].chance == pytest.approx(0.25)
    assert scores["right"].n_draws == 2
    assert not items.labelled


def test_the_behaviour_that_a_skill_asks_for_is_counted_apart(tmp_path: Path) -> None:
    """One model names the wrong step in words, the other only gives its number in the answer."""
    items = skills.generate("diagnostic", n=8, seed=0, domain="mathematics", level=1)
    asked = [item for item in items if item.answer_form == "diagnosis"]
    assert asked
    write_jsonl(tmp_path / "tasks.jsonl", [item.to_json() for item in asked])
    samples = [Sample(item.id, item.task, item.prompt, item.answer) for item in asked]
    records = [
        Outcome(
            item.id, item.task, model, "right", item.trace if model == "rl" else f"ANS {item.answer}", 9, finish="stop"
        )
        for model in ("base", "rl")
        for item in asked
    ]
    outcomes = Outcomes(records, samples)
    found = Items.of(outcomes, tmp_path / "tasks.jsonl").all_scores(outcomes, ("base", "rl"))
    assert found["right"].right.mean(axis=1).tolist() == [1, 1]
    assert found["strict"].right.mean(axis=1).tolist() == [0, 1]
    assert found["behaviour"].right.mean(axis=1).tolist() == [0, 1]
    assert not found["behaviour"].chance.any()


def test_a_dictionary_that_does_not_fit_is_left_out_with_a_sentence(run: Path, tmp_path: Path) -> None:
    """It is no reason to refuse the rest."""
    family = mp.ModelFamily.load(MODELS)
    for names, sentence in ((("base", "rl", "other"), "has the model other"), (("sft", "rl"), "lacks base")):
        folder = tmp_path / "-".join(names)
        with Stage.open(folder, name="train-sae", config={"site": "resid_post.2"}) as stage:
            make_crosscoder(names=names, d_model=128).save(folder)
            stage.finish(outputs=[path.name for path in folder.iterdir() if path.name != "unfinished.json"])
        _, note = _dictionary(folder, family, "base")
        assert sentence in note
    assert _dictionary(None, family, "base")[0] is None


def test_outcomes_of_another_place_are_read(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--evals", str(run / "evals"), "--out", str(tmp_path / "p"), "--run", str(tmp_path / "new"), "--dry-run"]
    models = [f"{name}={path}" for name, path in MODELS.items()]
    assert main(["probe", *words, "--models", *models]) == 0
    assert "4 models × 40 items" in capsys.readouterr().out
