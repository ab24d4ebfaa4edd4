"""FLOP against torch's own counter and against counts by hand; rates; cards; the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from mechprobe.cli import main
from mechprobe.errors import ConfigError
from mechprobe.planning import formulas
from mechprobe.planning.cards import CARDS, card_named
from mechprobe.planning.rates import Rates
from mechprobe.planning.shapes import ModelShape

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
)  # fmt: skip


def test_prefill_is_what_torch_counts() -> None:
    shape, model = ModelShape.of(CONFIG), AutoModelForCausalLM.from_config(CONFIG, attn_implementation="eager")
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(ids, use_cache=False)
    rotary = 2 * (CONFIG.hidden_size // 8) * 8  # one product of frequencies and positions, shared by both rows
    expected = formulas.forward_flop(shape, 16, 8) + formulas.head_flop(shape, 16)
    assert abs(counted.get_total_flops() - expected) <= 2 * rotary


def test_backward_is_two_forward_passes() -> None:
    assert formulas.backward_flop(7.0, weights=True) == 14
    assert formulas.backward_flop(7.0, weights=False) == 7


def test_sizes_by_hand() -> None:
    shape = ModelShape.of(CONFIG)
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    assert shape.block_weights == block
    assert shape.parameters == 3 * (block + 2 * 32) + 2 * 50 * 32 + 32
    assert formulas.kv_bytes(shape, "float32", 5, 7) == 2 * 3 * 5 * 7 * 2 * 8 * 4


def test_crosscoder_by_hand() -> None:
    assert formulas.dense_step_flop(6, 20, 3) == 10 * 6 * 20 * 3
    assert formulas.sparse_step_flop(6, 20, 2, 3) == (2 * 6 * 20 + 8 * 6 * 2) * 3
    assert formulas.optimizer_bytes(10) == 280


def test_rates_are_interpolated_between_measured_widths() -> None:
    rates = replace(Rates.of_card(CARDS["H100"]), blocks={"float32": {"100": (1e9, 1e9), "10000": (1e11, 1e11)}})
    assert rates.block_rate("float32", 1000) == pytest.approx(1e10)
    assert rates.block_rate("float32", 10) == pytest.approx(1e9)
    assert rates.block_rate("bfloat16", 10**6) == pytest.approx(1e11)


def test_cards_by_name() -> None:
    assert card_named("rtx 4090").name == "4090"
    with pytest.raises(ConfigError, match="Card 'X9' is unknown"):
        card_named("X9")


def test_rates_survive_a_file(tmp_path: Path) -> None:
    rates = Rates.of_card(CARDS["L4"])
    rates.save(tmp_path / "c.json")
    assert Rates.load(tmp_path / "c.json") == rates
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match="no calibration of this version"):
        Rates.load(tmp_path / "c.json")


def test_plan_of_the_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--card", "H100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [row["stage"] for row in found["stages"]]
    assert names == ["localize", "cache", "train-sae", "features", "evaluate", "select", "intervene", "report"]
    assert all(row["seconds"] > 0 and row["host_bytes"] > 0 for row in found["stages"])


def test_plan_grows_with_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    flop = []
    for n in (1_000_000, 2_000_000):
        assert main(["plan", "--card", "H100", "--json", "--set", f"train_sae.n_tokens={n}"]) == 0
        stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
        flop.append(stages["train-sae"]["flop"])
    assert 1.9 * flop[0] < flop[1] <= 2 * flop[0]  # the held-out rows are measured once


def test_the_dtype_auto_is_that_of_the_files_on_a_card_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LlamaConfig(**{**CONFIG.to_dict(), "dtype": "bfloat16"}).save_pretrained(tmp_path)
    replace(Rates.of_card(CARDS["H100"]), device="cpu").save(tmp_path / "cpu.json")
    found = []
    for device in (["--card", "H100"], ["--calibration", str(tmp_path / "cpu.json")]):
        assert main(["plan", *device, "--model-config", str(tmp_path), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["dtype"])
    assert found == ["bfloat16", "float32"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--card", "X9"], "Card 'X9' is unknown"),
        (["--calibration", "missing.json"], "There is no calibration in missing.json"),
        (["--card", "H100", "--model-config", "missing.json"], "missing.json does not exist"),
    ],
)
def test_plan_refuses_in_a_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_that_transformers_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    assert main(["plan", "--card", "H100", "--model-config", str(tmp_path)]) == 2
    assert "cannot be used" in capsys.readouterr().err
