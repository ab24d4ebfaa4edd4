"""The cost model against hand arithmetic, and the configuration for Qwen3-4B against a family of its shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import mechprobe as mp
from experiments.paper_a import cost
from mechprobe.cli import main
from mechprobe.records import write_jsonl
from tests.builders import build_family, build_tokenizer

CONFIG = Path(cost.__file__).with_name("qwen3_4b.toml")
TASKS = ("obqa", "csqa", "headqa", "sciq", "arc_c", "logiqa", "piqa", "math")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Prompts and tasks of the asked names, as --set options."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{a}+1=", "response": str(a + 1)} for a in range(40)])
    items = [
        {"id": f"{task}{k}", "task": task, "prompt": f"{k}?", "answer": str(k)} for task in TASKS for k in range(4)
    ]
    write_jsonl(tmp_path / "tasks.jsonl", items)
    return [f"prompts.file={tmp_path / 'prompts.jsonl'}", f"tasks.file={tmp_path / 'tasks.jsonl'}"]


def test_the_model_is_qwen3_4b() -> None:
    shape = cost.ModelShape()
    block = 2560 * 4096 + 2 * 2560 * 1024 + 4096 * 2560 + 3 * 2560 * 9728
    assert shape.block_parameters == block
    assert shape.parameters == 36 * block + 151_936 * 2560
    assert shape.parameters / 1e9 == pytest.approx(4.02, abs=0.01)
    assert shape.kv_bytes == 36 * 2 * 8 * 128 * 2


def test_parameters_are_those_of_a_model_that_is_built() -> None:
    from transformers import Qwen3ForCausalLM

    shape = cost.ModelShape(d_model=32, n_layers=3, d_mlp=48, n_heads=4, n_kv_heads=2, d_head=16, vocab=100)
    settings = Qwen3Config(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
    )  # fmt: skip
    matrices = sum(p.numel() for p in Qwen3ForCausalLM(settings).parameters() if p.ndim == 2)
    assert shape.parameters == matrices


def test_a_forward_pass_is_two_operations_a_weight_and_the_attention() -> None:
    shape = cost.ModelShape(d_model=8, n_layers=4, d_mlp=16, n_heads=2, n_kv_heads=1, d_head=4, vocab=10)
    block = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    assert shape.forward_flop(5, blocks=2) == 2 * (2 * block + 4 * 5 * 8)
    assert shape.forward_flop(5) == 4 * (2 * block + 4 * 5 * 8) + 2 * 10 * 8


def test_training_is_five_products_and_adam() -> None:
    assert cost.crosscoder_parameters(3, 2560, 32768) == 503_316_480
    assert cost.dense_step_flop(3, 2560, 32768) == 2_516_582_400
    rates = cost.Rates(crosscoder_tflops=1, memory_tb_per_s=1, disk_gb_per_s=1e6)
    flop, hours = cost.train_cost(3, 10, 100, 1000, 100, rates)
    assert flop == 10 * 3 * 10 * 100 * 1000
    assert hours == pytest.approx((flop / 1e12 + 28 * 6000 * 10 / 1e12) / 3600)
    slow = cost.Rates(crosscoder_tflops=1e9, memory_tb_per_s=1e9, disk_gb_per_s=1e-6)
    assert cost.train_cost(3, 10, 100, 1000, 100, slow)[1] == pytest.approx(1000 * 30 * 2 / 1e3 / 3600)


def test_generation_takes_the_slowest_of_three() -> None:
    shape = cost.ModelShape()
    launching = cost.Rates(block_ms=1000, prompt_tokens=0)
    assert cost.decoding_cost(shape, 8, 10, 4, 36, launching)[1] == pytest.approx(2 * 10 * 36 / 3600)
    reading = cost.Rates(block_ms=0, lm_tflops=1e9, memory_tb_per_s=1, prompt_tokens=0)
    step = (2 * shape.parameters + 4 * 5 * shape.kv_bytes) / 1e12
    assert cost.decoding_cost(shape, 4, 10, 4, 36, reading)[1] == pytest.approx(10 * step / 3600)


def test_the_conditions_counted_are_those_that_are_planned() -> None:
    config = mp.RunConfig.build(CONFIG)
    few = mp.RunConfig.build(CONFIG, ["intervene.n_random=3", "intervene.n_shuffled=2"])
    assert (
        cost.n_conditions(config) - cost.n_conditions(few) == 4 * 2 * 96 + 4 * 97 + 2 * 97
    )  # random and rescaled, equal norm, shifted


def test_the_store_is_rows_times_models_times_width() -> None:
    setting = cost.Setting(mp.RunConfig.build(CONFIG), cost.ModelShape(), cost.Rates())
    by_stage = {row.stage: row for row in setting.costs()}
    assert by_stage["cache"].store_tb == 400e6 * 3 * 2560 * 2 / 1e12
    assert by_stage["train-sae"].pflop == pytest.approx(400e6 * 2_516_582_400 / 1e15)
    half = cost.Setting(mp.RunConfig.build(CONFIG, ["cache.max_tokens=200000000"]), cost.ModelShape(), cost.Rates())
    assert {row.stage: row for row in half.costs()}["cache"].store_tb == by_stage["cache"].store_tb / 2


def test_the_script_prints_its_assumptions_and_a_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, cost.__file__, "--lm-tflops", "200", "--json", str(tmp_path / "cost.json")],
        capture_output=True, text=True, check=True, cwd=CONFIG.parents[2], env=_environment(),
    )  # fmt: skip
    assert "lm_tflops 200" in done.stdout
    assert "6.14 TB" in done.stdout
    assert json.loads((tmp_path / "cost.json").read_text())["rates"]["lm_tflops"] == 200


def test_a_setting_that_does_not_exist_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [cost.__file__, "--set", "cache.max_token=1"])
    with pytest.raises(SystemExit) as ended:
        cost.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "max_token" in said
    assert said.count("\n") == 1


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CONFIG.parents[2])}


def test_the_configuration_fits_a_family_of_its_shapes(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of Qwen3-4B's width and depth, with small blocks: a dry run loads the weights for its time estimate."""
    tokenizer = build_tokenizer()
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=2560, intermediate_size=8, num_hidden_layers=36, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32768,
    )  # fmt: skip
    models = []
    for name in ("base", "sft", "rl"):
        folder = tmp_path / name
        Qwen3ForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        models.append(f"{name}={folder}")
    options = [option for text in files for option in ("--set", text)]
    command = ["run", "--config", str(CONFIG), *options, "--models", *models, "--device", "cpu", "--dry-run"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "resid_post.18" in said
    assert "width (base 2560, sft 2560, rl 2560) × 2 bytes (bfloat16)" in said
    assert not (tmp_path / "run").exists()


def test_the_configuration_runs_on_a_small_model_of_its_depth(tmp_path: Path, files: list[str]) -> None:
    paths = build_family(tmp_path / "models", "qwen3", n_layers=36)
    small = ["train_sae.d_sae=64", "train_sae.n_tokens=512", "train_sae.batch_size=64", "cache.max_length=64",
             "features.ce_samples=2", "tasks.max_new_tokens=4"]  # fmt: skip
    models = {name: str(path) for name, path in paths.items()}
    config = mp.RunConfig.build(CONFIG, [*files, *small], models=models, device="cpu")
    run = mp.Run(config, tmp_path / "run")
    run.check()
    store = run.cache()
    assert store.dtype == "bfloat16"
    assert (store.tokens.position >= 1).all()
    crosscoder = run.train_sae()
    assert crosscoder.config.variant == "l1"
    assert run.features().table.models == ("base", "sft", "rl")
