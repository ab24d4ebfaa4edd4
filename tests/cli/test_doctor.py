"""``mechprobe doctor --config``: one page about models and inputs, and every refusal, not only the first."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mechprobe.cli import main

Printed = pytest.CaptureFixture[str]


def write_config(folder: Path, models: dict[str, Path], *, more: str = "", sites: str = "resid_post.1") -> Path:
    (folder / "prompts.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "1+1="}\n')
    (folder / "tasks.jsonl").write_text('{"task": "sums", "prompt": "1+1=", "answer": "2"}\n')
    lines = ["[models]", *(f'{name} = "{path}"' for name, path in models.items())]
    lines += ['[prompts]\nfile = "prompts.jsonl"', '[tasks]\nfile = "tasks.jsonl"\nmax_new_tokens = 8']
    (folder / "mine.toml").write_text("\n".join([*lines, f'[cache]\nsites = ["{sites}"]', more]))
    return folder / "mine.toml"


def test_the_page_says_what_will_be_done(llama_family: dict[str, Path], tmp_path: Path, capsys: Printed) -> None:
    config = write_config(tmp_path, llama_family)
    assert main(["doctor", "--config", str(config)]) == 0
    page = capsys.readouterr().out
    for words in (
        "LlamaForCausalLM, 3 blocks, width 32, context 64, 100 embeddings; 37,344 weights, float32 in the files",
        "float32 when loaded: 149 KB",
        "100 tokens; adds BOS <bos> (1); ends with <eos> (2); no chat template",
        "all 3 tokenizers are equal",
        "<eos> (2); each of them ends the responses of every model",
        "plain hooks on transformers where their bits equal",
        "299 KB where two models run together",
        "cache.drop_first_positions",
        "the first becomes 6 tokens: '<bos>hello'",
        "9 rows (2 prompts) × 3 models × 1 sites (resid_post.1)",
        "sums 1",
    ):
        assert words in page, words
    assert "fail" not in page
    assert not (tmp_path / "runs").exists()


def test_no_weights_are_read(
    llama_family: dict[str, Path], tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechprobe.models.load.load_weights", lambda *args, **options: pytest.fail("weights were read"))
    assert main(["doctor", "--config", str(write_config(tmp_path, llama_family))]) == 0


def test_every_refusal_is_a_line(
    llama_family: dict[str, Path], neox_family: dict[str, Path], tmp_path: Path, capsys: Printed
) -> None:
    from tests.builders import build_family

    broken, deep = tmp_path / "broken", build_family(tmp_path / "deep", names=("deep",), n_layers=2)
    shutil.copytree(llama_family["rl"], broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({f"module.{name}": value for name, value in tensors.items()}, broken / "model.safetensors")
    (broken / "tokenizer.json").write_text("nonsense")
    (tmp_path / "rl.gguf").write_bytes(b"GGUF")
    models = {
        "base": llama_family["base"],
        "rl": broken,
        "gguf": tmp_path / "rl.gguf",
        "gone": tmp_path / "gone",
        **deep,
    }
    assert main(["doctor", "--config", str(write_config(tmp_path, models)), "--set", "device=cuda:99", "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)
    refused = [row["text"] for row in rows if row["state"] == "fail"]
    for words in (
        "Device 'cuda:99' is not available", "the tokenizer in", "is a GGUF file", "does not exist",
        "Models base and deep have 3 and 2 layers",
    ):  # fmt: skip
        assert sum(words in text for text in refused) == 1, (words, refused)
    assert all("\n" not in text for text in refused)


def test_inputs_are_refused_too(llama_family: dict[str, Path], tmp_path: Path, capsys: Printed) -> None:
    config = write_config(tmp_path, llama_family, sites="resid_post.9")
    (tmp_path / "tasks.jsonl").write_text('{"task": "sums", "prompt": "' + "7" * 80 + '", "answer": "2"}\n')
    assert main(["doctor", "--config", str(config), "--set", "select.rule=nonsense", "--set", "tuned=nobody"]) == 2
    page = capsys.readouterr().out
    for words in ("resid_post.0 to resid_post.2", "leaves 56", "no model 'nobody'", "'nonsense'"):
        assert sum(words in line and line.startswith("fail") for line in page.splitlines()) == 1, (words, page)


def test_models_can_be_given_alone(llama_family: dict[str, Path], capsys: Printed) -> None:
    assert main(["doctor", "--models", f"base={llama_family['base']}", f"rl={llama_family['rl']}"]) == 0
    assert "all 2 tokenizers are equal" in capsys.readouterr().out
    assert main(["doctor", "--models", "base"]) == 2
