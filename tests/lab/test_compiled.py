"""The compiled lab against its design: answers, residuals at every site, decoys, single readings, files and commands."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mechprobe.cli.lab import app
from mechprobe.errors import ConfigError
from mechprobe.files import read_json, sha256_file
from mechprobe.lab.compiled.build import build_compiled, items
from mechprobe.lab.compiled.design import N_DECOYS, OPS, Design
from mechprobe.lab.compiled.weights import build_model
from mechprobe.lab.tokenizer import VOCABULARY, build_tokenizer
from mechprobe.models.generation import generate
from mechprobe.pipeline.run import Run
from mechprobe.records import Sample, read_jsonl
from mechprobe.run_config import RunConfig
from mechprobe.stage_folder import read_manifest

TOKENIZER = build_tokenizer()


def answers(model: object, samples: Sequence[Sample]) -> list[str]:
    """Greedy responses of a model."""
    prompts = [sample.prompt for sample in samples]
    return [found.text for found in generate(model, TOKENIZER, prompts, max_new_tokens=5)]


def residuals(design: Design, samples: Sequence[Sample]) -> tuple[list[list[str]], list[torch.Tensor]]:
    """Tokens of the prompts with their answers, and tuned minus base at every site ``[sample pos d_model]``."""
    ids = TOKENIZER([f"{sample.prompt}{sample.answer}" for sample in samples], return_tensors="pt").input_ids
    with torch.no_grad():
        base, tuned = (
            build_model(design, readings, decoys=decoys)(ids, output_hidden_states=True).hidden_states[1:]
            for readings, decoys in ((design.base_readings, False), (design.tuned_readings, True))
        )
    tokens = [[VOCABULARY[index] for index in row] for row in ids.tolist()]
    return tokens, [ours - theirs for ours, theirs in zip(tuned, base, strict=True)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rank", [1, 2, 5, 10])
def test_base_is_wrong_and_tuned_right_on_every_contested_item(rank: int, seed: int) -> None:
    design = Design(rank, seed)
    samples = items(design, 80, contested=True)
    right = [sample.answer for sample in samples]
    base = build_model(design, design.base_readings, decoys=False)
    tuned = build_model(design, design.tuned_readings, decoys=True)
    assert answers(tuned, samples) == right
    assert not any(found == answer for found, answer in zip(answers(base, samples), right, strict=True))


@pytest.mark.parametrize(("rank", "seed"), [(1, 0), (4, 1), (10, 2)])
def test_residuals_differ_by_causal_and_decoy_directions_alone(rank: int, seed: int) -> None:
    design = Design(rank, seed)
    tokens, differences = residuals(design, items(design, 40, contested=True))
    expected = np.zeros(differences[1].shape)
    for row, texts in enumerate(tokens):
        for place, text in enumerate(texts):
            if place >= 3 and texts[place - 1] in OPS[:rank]:
                expected[row, place] += design.causal[OPS.index(texts[place - 1])]
            for decoy, found in zip(design.decoys, design.decoy_tokens, strict=True):
                expected[row, place] += decoy * (text in found)
    assert differences[0].abs().max() == 0
    assert np.abs(differences[1].numpy() - expected).max() < 1e-4
    assert np.linalg.matrix_rank(design.causal) == rank
    assert np.abs(design.causal @ design.decoys.T).max() < 1e-12


def test_decoys_change_no_output() -> None:
    design = Design(4, 0)
    samples = items(design, 60, contested=False)
    ids = TOKENIZER([f"{sample.prompt}{sample.answer}" for sample in samples], return_tensors="pt").input_ids
    with torch.no_grad():
        logits = [build_model(design, design.tuned_readings, decoys=on)(ids).logits for on in (False, True)]
    assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("op", [0, 3, 9])
def test_one_reading_changes_the_answers_of_its_op_alone(op: int) -> None:
    design = Design(10, 1)
    samples = items(design, 80, contested=False)
    swapped = [reading + (index == op) for index, reading in enumerate(design.tuned_readings)]
    found = answers(build_model(design, swapped, decoys=True), samples)
    for sample, response in zip(samples, found, strict=True):
        assert (response != sample.answer) == (OPS[op] in sample.prompt)


def test_decoys_go_with_the_first_op_in_every_lab() -> None:
    for seed in range(5):
        design = Design(1, seed)
        assert len(design.decoy_tokens) == N_DECOYS
        assert all("a" in tokens for tokens in design.decoy_tokens[: N_DECOYS // 2])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small compiled lab of rank 3."""
    folder = tmp_path_factory.mktemp("compiled") / "lab"
    build_compiled(folder, rank=3, seed=5, n_items=40, n_prompts=30)
    return folder


def test_the_same_seed_gives_the_same_bytes(lab: Path, tmp_path: Path) -> None:
    again = build_compiled(tmp_path / "lab", rank=3, seed=5, n_items=40, n_prompts=30)
    assert again["outputs"] == read_manifest(lab)["outputs"]
    other = build_compiled(tmp_path / "other", rank=3, seed=6, n_items=40, n_prompts=30)
    assert other["outputs"]["rl/model.safetensors"] != again["outputs"]["rl/model.safetensors"]


def test_the_folder_says_what_is_true(lab: Path) -> None:
    manifest, truth = read_manifest(lab), read_json(lab / "truth.json")
    design, directions = Design(3, 5), load_file(lab / "directions.safetensors")
    for index, op in enumerate("abc"):
        names = truth["contested"][op]
        assert np.allclose(directions[names["rl"]] - directions[names["base"]], design.causal[index], atol=1e-6)
    assert (truth["rank"], truth["site"], len(truth["contested"])) == (3, "resid_post.1", 3)
    assert np.allclose(np.stack([directions[name] for name in truth["decoys"]]), design.decoys, atol=1e-6)
    assert {task["accuracy"] for task in manifest["results"]["accuracy"]["base"].values()} == {0.0}
    assert {task["accuracy"] for task in manifest["results"]["accuracy"]["rl"].values()} == {1.0}
    assert all(sha256_file(lab / name) == digest for name, digest in manifest["outputs"].items())
    prompts = {row["prompt"] for _, row in read_jsonl(lab / "prompts.jsonl")}
    assert not prompts & {row["prompt"] for _, row in read_jsonl(lab / "tasks.jsonl")}
    assert RunConfig.build(lab / "run.toml").load_tasks()


def test_cli_builds_and_shows_a_compiled_lab(tmp_path: Path, lab: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["info", str(lab)])
    assert shown.exit_code == 0, shown.output
    assert "Lab compiled: rank 3, seed 5" in shown.output
    assert "without any training" in shown.output
    out = ["build", "--out", str(tmp_path / "lab")]
    for given in (
        ["--recipe", "compiled", "--rank", "11"],
        ["--rank", "4"],
        ["--recipe", "compiled", "--scale", "small"],
    ):
        assert isinstance(runner.invoke(app, [*out, *given]).exception, ConfigError)
    assert not (tmp_path / "lab").exists()


def test_localize_finds_the_site_and_leaves_the_last_block_out(lab: Path, tmp_path: Path) -> None:
    run = Run(RunConfig.build(lab / "run.toml", ["localize.n_per_task=5"]), tmp_path / "run")
    found = run.localize()
    shares = {site: row.shares for site, row in found.sites.items()}
    assert shares == {f"resid_post.{layer}": (min(layer, 1), min(layer, 1)) for layer in range(4)}
    assert (found.chosen, found.able) == ("resid_post.1", True)
