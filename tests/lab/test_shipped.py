"""The claims of the shipped labs, checked against their files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechprobe.errors import ArtifactError
from mechprobe.evals.tasks import load_tasks
from mechprobe.files import read_json, sha256_file
from mechprobe.lab.items import build_items
from mechprobe.lab.measure import MAX_NEW_TOKENS, SCORER, measure
from mechprobe.lab.recipe import TRAINED_SKILL, get_recipe
from mechprobe.lab.results import model_folders, spliced_model
from mechprobe.lab.summary import read_lab, shipped, summary
from mechprobe.lab.weights import FROZEN
from mechprobe.localization.ceilings import patched_outcomes
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.stage_folder import read_manifest
from mechprobe.statistics import holm
from mechprobe.types import Site

MAIN, NULL = shipped("shared-marker"), shipped("own-markers")


@pytest.mark.parametrize("lab", [MAIN, NULL], ids=["shared-marker", "own-markers"])
def test_every_file_is_there_with_the_hash_of_the_manifest(lab: Path) -> None:
    outputs = read_manifest(lab)["outputs"]
    assert {name: sha256_file(lab / name) for name in outputs} == outputs


@pytest.mark.parametrize("lab", [MAIN, NULL], ids=["shared-marker", "own-markers"])
def test_shipped_recipe_is_the_recipe_of_the_code(lab: Path) -> None:
    recipe = get_recipe(lab.name)
    assert read_lab(lab)["config"]["recipe"] == recipe.model_dump(mode="json")
    items = build_items(recipe)
    held_out = [item.id for questions in items.eval.values() for item in questions]
    assert [s.id for task in load_tasks(lab / "tasks.jsonl") for s in task.samples] == held_out


def test_both_labs_fit_in_32_megabytes() -> None:
    size = sum(file.stat().st_size for lab in (MAIN, NULL) for file in lab.rglob("*") if file.is_file())
    assert size <= 32 * 10**6


def test_rl_beats_base_on_untrained_skills_and_sft_loses_somewhere() -> None:
    results = read_lab(MAIN)["results"]
    findings = results["findings"]
    for arm, found, sign in (("rl", "rl_gains_untrained", 1), ("sft", "sft_loses", -1)):
        for skill in findings[found]:
            before, after = results["accuracy"]["base"][skill], results["accuracy"][arm][skill]
            se = (before["se"] ** 2 + after["se"] ** 2) ** 0.5
            assert before["n"] == after["n"] == 256
            assert sign * (after["accuracy"] - before["accuracy"]) > 3 * se
    assert len(set(findings["rl_gains_untrained"]) - {TRAINED_SKILL}) >= 2
    assert findings["sft_loses"]
    assert results["gates"]["pretraining"]["passed"]
    assert results["gates"]["ceilings"]["passed"]


def test_null_lab_learns_its_skill_and_transfers_to_no_other() -> None:
    results = read_lab(NULL)["results"]
    assert results["findings"]["rl_learns_trained_skill"]
    assert results["findings"]["rl_gains_untrained"] == []
    untrained = {skill: c for skill, c in results["versus_base"]["rl"].items() if skill != TRAINED_SKILL}
    assert min(holm([comparison["mcnemar_p"] for comparison in untrained.values()])) > 0.05


def test_the_summary_shows_the_forced_marker_with_the_models() -> None:
    text = summary(read_lab(MAIN))
    assert "base, marker forced" in text
    assert "no evidence about large models" in text


@pytest.mark.parametrize("lab", [MAIN, NULL], ids=["shared-marker", "own-markers"])
def test_frozen_parts_are_bit_equal_in_every_model(lab: Path) -> None:
    folders = model_folders(lab)
    assert set(folders) == set(read_lab(lab)["results"]["accuracy"])
    base = load_file(folders["base"] / "model.safetensors")
    for folder in folders.values():
        tuned = load_file(folder / "model.safetensors")
        assert all(torch.equal(tuned[name], base[name]) for name in FROZEN)


def test_measured_accuracy_is_that_of_the_shipped_weights() -> None:
    """Two items may change between processors, because float sums differ in their last bits."""
    items = {skill: q for skill, q in build_items(get_recipe("shared-marker")).eval.items() if skill == "simulation"}
    family = ModelFamily.load({"base": MAIN / "base", "rl": MAIN / "rl"})
    claimed = read_lab(MAIN)["results"]["accuracy"]
    for model in family:
        found = measure(model.hf, family.tokenizer, items, rendering="compact")["simulation"]
        assert abs(sum(found.right) - claimed[model.name]["simulation"]["right"]) <= 2


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_spliced_model_is_the_patched_model(layer: int) -> None:
    """The lab measures ceilings with spliced models and `localize` patches residuals; the responses are equal."""
    family = ModelFamily.load({"base": MAIN / "base", "rl": MAIN / "rl"})
    tasks = load_tasks(MAIN / "tasks.jsonl", scorer_spec=SCORER, max_new_tokens=MAX_NEW_TOKENS, n_per_task=8)
    prompts = [sample.prompt for task in tasks for sample in task.samples]
    for host, donor in (("base", "rl"), ("rl", "base")):
        patched = patched_outcomes(family[host], family[donor], Site(layer=layer), tasks)
        model = spliced_model(family[host].hf, family[donor].hf, layer)
        spliced = generate(model, family.tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
        assert [outcome.response for outcome in patched] == [response.text for response in spliced]


def test_a_missing_lab_is_an_error_with_the_command_that_builds_it() -> None:
    with pytest.raises(ArtifactError, match=r"'missing'.*mechprobe lab build --recipe missing"):
        shipped("missing")


def test_a_model_folder_is_not_a_lab() -> None:
    assert read_json(MAIN / "base" / "manifest.json")["stage"] == "lab-base"
    with pytest.raises(ArtifactError, match="'lab-base'"):
        read_lab(MAIN / "base")
