"""A small lab: every arm, frozen parts, manifest, resume, and identical bytes for the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mechprobe.errors import ArtifactError, ConfigError, ModelError
from mechprobe.evals import skills
from mechprobe.files import read_json, sha256_file
from mechprobe.lab.builder import build
from mechprobe.lab.items import build_items
from mechprobe.lab.recipe import get_recipe
from mechprobe.lab.summary import summary
from mechprobe.lab.weights import FROZEN
from mechprobe.records import read_jsonl
from mechprobe.stage_folder import read_manifest

ARMS = ("sft", "sft_instyle", "rl")
pytestmark = pytest.mark.usefixtures("short_lab_answers")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small lab of the main recipe."""
    folder = tmp_path_factory.mktemp("lab") / "small"
    build("shared-marker", folder, scale="small")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_every_arm_trains_its_blocks_and_keeps_the_rest_bit_equal(lab: Path) -> None:
    base = weights(lab / "base")
    folders = [lab / arm for arm in ARMS] + sorted((lab / "checkpoints").glob("*/step_*"))
    assert len(folders) == 6
    for folder in folders:
        tuned = weights(folder)
        assert tuned.keys() == base.keys()
        assert all(torch.equal(tuned[name], base[name]) for name in FROZEN)
        moved = any(not torch.equal(tuned[name], base[name]) for name in base)
        assert moved or "rl" in folder.parts[-3:], "RL changes nothing if no response is right"
        assert {tensor.dtype for tensor in tuned.values()} == {torch.float16}


def test_rl_trains_the_blocks_if_some_responses_are_right(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mechprobe.lab.posttrain as posttrain
    from mechprobe.evals.scorers.parse import function_scorer
    from mechprobe.lab.tokenizer import build_tokenizer

    def even_length(response: str, answer: str) -> bool:
        """Replacement for the scorer, because the small base never answers right."""
        assert answer.isdigit()
        return len(response.split()) % 2 == 0

    recipe = get_recipe("shared-marker", "small")
    monkeypatch.setattr(posttrain, "scorer", lambda _spec: function_scorer(even_length))
    watch = posttrain.Watch()
    model = posttrain.train_grpo(
        lab / "base", build_tokenizer(), build_items(recipe).posttrain, recipe.rl, seed=0, watch=watch
    )
    base = weights(lab / "base")
    tuned = {name: tensor.half() for name, tensor in model.state_dict().items()}
    assert any(row["reward"] > 0 for row in watch.curve)
    assert any(not torch.equal(tuned[name], base[name]) for name in base if name not in FROZEN)
    assert all(torch.equal(tuned[name], base[name]) for name in FROZEN)


def test_manifest_is_complete_and_its_hashes_are_right(lab: Path) -> None:
    manifest = read_manifest(lab)
    results = manifest["results"]
    models = {"base", *ARMS, "sft@step_000001", "sft_instyle@step_000001", "rl@step_000001"}
    assert set(results["accuracy"]) == models
    for table in (*results["accuracy"].values(), results["base_marker_forced"]):
        assert set(table) == set(skills.SKILLS)
        assert all(cell["n"] == 16 and cell["se"] >= 0 for cell in table.values())
    assert set(results["ceilings"]) == {"resid_post.0", "resid_post.1"}
    assert results["gates"]["frozen_parts_bit_equal"] == dict.fromkeys(ARMS, True)
    assert results["pretraining"]["seeds_tried"] == [0]
    assert results["pretraining"]["attempts"][0]["curve"][-1]["step"] == 11
    assert [row["step"] for row in results["curves"]["rl"]] == [1, 2]
    assert "elicitation by construction" in results["caveat"]
    assert manifest["config"]["recipe"]["name"] == "shared-marker"
    assert manifest["environment"]["packages"]["torch"]
    for name, digest in manifest["outputs"].items():
        assert sha256_file(lab / name) == digest
    on_disk = {str(f.relative_to(lab)) for f in lab.rglob("*") if f.is_file()}
    assert {name for name in on_disk if not name.endswith(("manifest.json", "run.toml"))} == set(manifest["outputs"])


def test_nothing_on_disk_names_this_machine(lab: Path) -> None:
    for file in lab.rglob("*.json"):
        assert str(lab.parent) not in file.read_text()


def test_the_same_seed_gives_the_same_bytes_and_an_interrupted_build_resumes(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mechprobe.lab.posttrain as posttrain

    real: Any = posttrain.train_grpo

    def interrupted(*args: Any, **kwargs: Any) -> None:
        kwargs["watch"].checkpoints = ()
        real(*args, **kwargs)
        raise KeyboardInterrupt

    again = tmp_path / "again"
    monkeypatch.setattr(posttrain, "train_grpo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build("shared-marker", again, scale="small")
    assert not (again / "manifest.json").exists()
    base_time = (again / "base" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.undo()

    manifest = build("shared-marker", again, scale="small")
    assert manifest["outputs"] == read_manifest(lab)["outputs"]
    assert manifest["results"]["accuracy"] == read_manifest(lab)["results"]["accuracy"]
    assert (again / "base" / "model.safetensors").stat().st_mtime_ns == base_time


def test_a_finished_lab_is_reused_and_another_seed_is_an_error(lab: Path) -> None:
    before = (lab / "manifest.json").stat().st_mtime_ns
    assert build("shared-marker", lab, scale="small") == read_json(lab / "manifest.json")
    assert (lab / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match=r"seed: 0 .* 1 "):
        build("shared-marker", lab, scale="small", seed=1)


def test_building_keeps_the_random_state_and_threads_of_the_caller(tmp_path: Path) -> None:
    """Python's generator is not compared, because beartype draws from it when it checks calls."""
    torch.manual_seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    build("own-markers", tmp_path / "lab", scale="small")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.get_num_threads() == before[2]
    assert set(read_manifest(tmp_path / "lab")["results"]["accuracy"]) == {
        "base", "sft", "rl", "sft@step_000001", "rl@step_000001",
    }  # fmt: skip


def test_all_weights_are_trained_from_the_base_of_another_lab(lab: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    manifest = build("all-weights", folder, scale="small", base=lab / "base")
    assert sha256_file(folder / "base" / "model.safetensors") == sha256_file(lab / "base" / "model.safetensors")
    base, sft = weights(folder / "base"), weights(folder / "sft")
    assert all(not torch.equal(sft[name], base[name]) for name in FROZEN)
    assert manifest["results"]["gates"]["frozen_parts_bit_equal"] is None
    assert manifest["config"]["recipe"]["trained_parts"] == "all"
    assert read_manifest(folder / "sft")["config"]["trained_parts"] == "all"
    assert "trained_parts" not in read_manifest(lab / "sft")["config"]
    assert "Every weight was trained" in (folder / "run.toml").read_text()
    assert "every weight was trained" in summary(manifest)
    assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} >= set(manifest["outputs"])


def test_a_base_with_other_settings_is_an_error(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="all-weights with seed 5"):
        build("all-weights", tmp_path / "lab", scale="small", seed=5, base=lab / "base")
    with pytest.raises(ArtifactError, match="recipe own-markers"):
        build("own-markers", tmp_path / "null", scale="small", base=lab / "base")
    with pytest.raises(ArtifactError, match="does not exist"):
        build("all-weights", tmp_path / "lab", scale="small", seed=5, base=tmp_path / "gone")


def test_gates_stop_a_build_after_the_last_seed(tmp_path: Path) -> None:
    recipe = get_recipe("own-markers", "small").replace(enforce_gates=True)
    with pytest.raises(ModelError, match="seed from 3 to 4"):
        build(recipe, tmp_path / "lab", seed=3)
    assert not (tmp_path / "lab" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["shared-marker", "own-markers"])
def test_item_sets_of_the_full_recipes_are_disjoint(name: str) -> None:
    recipe = get_recipe(name)
    sets = build_items(recipe)
    held_out = {item.prompt for items in sets.eval.values() for item in items}
    posttrain = {item.prompt for item in sets.posttrain}
    corpus = {prompt for _, _, prompt in sets.corpus}
    assert [len(items) for items in sets.eval.values()] == [256] * 5
    assert len(held_out) == 5 * 256
    assert len(posttrain) == 2048
    assert not held_out & posttrain
    assert not held_out & corpus
    assert not posttrain & corpus
    assert len({identity for identity, _, _ in sets.corpus}) == len(corpus) == len(sets.corpus)
    assert [item.id for item in sets.posttrain] == [item.id for item in sets.posttrain_off_policy]
    assert {skill for _, skill, _ in sets.corpus[:200]} == set(skills.SKILLS)
    facts = {item.prompt for item in sets.eval["fact_retrieval"]}
    assert held_out - sets.withheld <= facts
    assert len(held_out - sets.withheld) == 128


def test_pretraining_never_sees_a_withheld_prompt() -> None:
    import itertools

    from mechprobe.lab.items import documents

    recipe = get_recipe("shared-marker")
    sets = build_items(recipe)
    stream = documents(recipe.pretrain, rendering="compact", withheld=sets.withheld, seed=0)
    seen = list(itertools.islice(stream, 20_000))
    assert not {document.prompt for document in seen} & sets.withheld
    worked = sum(document.response.startswith("THINK") for document in seen) / len(seen)
    assert worked == pytest.approx(0.35 * (1 - 0.5 * 1.3 / 5.3), abs=0.02)
    off_policy = {"SO", "CHECK", ">"}
    assert not any(off_policy & set(document.response.split()) for document in seen)


def test_unknown_recipe_and_scale_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'sharedmarker'.*shared-marker"):
        build("sharedmarker", tmp_path)
    with pytest.raises(ConfigError, match=r"'huge'.*full or small"):
        build("shared-marker", tmp_path, scale="huge")
    assert not list(tmp_path.iterdir())


def test_tasks_and_prompts_are_records_that_other_stages_read(lab: Path) -> None:
    tasks = [row for _, row in read_jsonl(lab / "tasks.jsonl")]
    assert {row["task"] for row in tasks} == set(skills.SKILLS)
    assert all(row.keys() == {"id", "task", "prompt", "answer"} for row in tasks)
    assert all(row.keys() == {"id", "task", "prompt"} for _, row in read_jsonl(lab / "prompts.jsonl"))


def test_the_run_configuration_is_valid(lab: Path) -> None:
    from mechprobe.run_config import RunConfig

    config = RunConfig.build(lab / "run.toml")
    assert config.models["rl"] == str(lab / "rl")
    assert (config.tasks.trained, config.tasks.force_prefix) == (("calculation",), "THINK")


def test_cli_builds_and_shows_a_lab(lab: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mechprobe.cli.lab import app

    runner = CliRunner()
    shown = runner.invoke(app, ["info", str(lab)])
    assert shown.exit_code == 0, shown.output
    assert "base, marker forced" in shown.output
    assert "calculation (n=16)" in shown.output
    assert "elicitation by construction" in shown.output
    refused = runner.invoke(app, ["info", str(tmp_path)])
    assert isinstance(refused.exception, ArtifactError)
