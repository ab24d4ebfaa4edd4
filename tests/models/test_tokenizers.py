"""Tokenizers are compared by the ids that they give; what only names or extends them goes on and is told."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mechprobe.cli import main
from mechprobe.errors import InputError, ModelError
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.run_config import RunConfig

BASE_ROWS = 100


def family_of(
    folders: dict[str, Path], place: Path, change: Callable[[PreTrainedTokenizerFast], None], *, rows: int | None = None
) -> dict[str, Path]:
    """Base as it is, and a copy of rl whose tokenizer is changed and whose embedding may have more rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["rl"])
    change(tokenizer)
    shutil.copytree(folders["rl"], place)
    if rows is not None:
        model = AutoModelForCausalLM.from_pretrained(place)
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return {"base": folders["base"], "rl": place}


def with_thinking(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_equal_tokenizers_say_nothing(llama_family: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    family = ModelFamily.load(llama_family)
    assert family.notes == ()
    assert not caplog.text
    assert family.identity == {}
    family.check_ids(family.tokenizer, ["any"], lambda tokenizer, text: pytest.fail("nothing needs to be encoded"))


def test_tokens_added_at_the_end_go_on_and_are_told(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = ModelFamily.load(family_of(llama_family, tmp_path / "rl", with_thinking, rows=BASE_ROWS + 28))
    assert "rl has 2 tokens that base lacks: <think> (100), </think> (101)" in caplog.text
    assert "Ids from 100 on have no embedding row in base" in caplog.text
    assert family.tokenizer is family["rl"].tokenizer, "only the larger vocabulary decodes every id"
    assert family.identity["tokenizers"] == list(family.notes[:1])
    family = copy.deepcopy(family)  # as another process receives it
    one, other = family["base"].tokenizer, family["rl"].tokenizer
    for used in (one, other):
        family.check_ids(used, ["1+1=", "abc"], ids)
    with pytest.raises(ModelError, match=r"1\+1=<think> has token 100 \(<think>\), which model base has no token for"):
        family.check_ids(other, ["1+1=<think>"], ids)
    with pytest.raises(ModelError, match=r"base and rl read 1\+1=<think> differently: .* in base and \[100\] in rl"):
        family.check_ids(one, ["1+1=<think>"], ids)
    responses = generate(family["rl"], family.tokenizer, ["abc"] * 3, max_new_tokens=20)
    assert all(token < BASE_ROWS for response in responses for token in response.token_ids)


def test_a_padded_embedding_is_no_difference(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load(family_of(llama_family, tmp_path / "rl", lambda tokenizer: None, rows=BASE_ROWS + 28))
    assert family.notes == ()
    assert (family["rl"].n_rows, family.n_token_ids) == (BASE_ROWS + 28, BASE_ROWS)


def test_a_pad_token_without_a_row_goes_on_and_is_told(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def padded(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    family = ModelFamily.load(family_of(llama_family, tmp_path / "rl", padded))
    assert "the pad token is <pad> (0) in base and [PAD] (100) in rl" in caplog.text
    with pytest.raises(ModelError, match=r"a\[PAD\] has token 100 \(\[PAD\]\), which model base has no token for"):
        family.check_ids(family["rl"].tokenizer, ["a[PAD]"], ids)


def test_a_token_that_no_model_has_a_row_for_is_refused_in_a_prompt(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    def padded(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    paths = family_of(llama_family, tmp_path / "rl", padded)
    family = ModelFamily.load({"rl": paths["rl"]})
    with pytest.raises(
        InputError, match=r"a\[PAD\] contains token 100 \('\[PAD\]'\), but only ids below 100 have an embedding"
    ):
        family.check_ids(family.tokenizer, ["a[PAD]"], ids)


def test_another_end_token_goes_on_and_ends_every_model(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ended(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.eos_token = "~"

    family = ModelFamily.load(family_of(llama_family, tmp_path / "rl", ended))
    end = family["rl"].tokenizer.eos_token_id
    assert f"the eos token is <eos> (2) in base and ~ ({end}) in rl" in caplog.text
    assert set(family.end_token_ids) == {2, end}


def edited(
    folders: dict[str, Path], place: Path, change: Callable[[dict[str, Any]], None], **config: Any
) -> dict[str, Path]:
    """Base as it is, and a copy of rl with another ``tokenizer.json`` and other entries of its config."""
    shutil.copytree(folders["rl"], place)
    for name, changed in (("tokenizer.json", change), ("tokenizer_config.json", lambda found: found.update(config))):
        found = json.loads((place / name).read_text())
        changed(found)
        (place / name).write_text(json.dumps(found))
    return {"base": folders["base"], "rl": place}


def rename_end(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    vocabulary["<|im_end|>"] = vocabulary.pop("<eos>")
    next(token for token in data["added_tokens"] if token["content"] == "<eos>")["content"] = "<|im_end|>"


def test_another_name_of_a_special_token_goes_on_and_is_told(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = ModelFamily.load(edited(llama_family, tmp_path / "rl", rename_end, eos_token="<|im_end|>"))
    assert "1 special token has another name (id 2 is <eos> and <|im_end|>)" in caplog.text
    assert family.end_token_ids == (2,)
    family.check_ids(family.tokenizer, ["1+1="], ids)
    family.check_ids(family["rl"].tokenizer, ["1+1=<|im_end|>"], ids)  # both models have a token with this id
    with pytest.raises(ModelError, match=r"base and rl read 1\+1=<\|im_end\|> differently"):
        family.check_ids(family["base"].tokenizer, ["1+1=<|im_end|>"], ids)


def swap_letters(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def lower_case(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Lowercase"}


def drop_bos(data: dict[str, Any]) -> None:
    data["post_processor"] = None


def test_tokenizers_that_read_a_text_differently_are_refused(llama_family: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"id \d+ is 'a' in base and 'b' in rl; give models that share one vocabulary"):
        ModelFamily.load(edited(llama_family, tmp_path / "swapped", swap_letters))
    with pytest.raises(ModelError, match=r"'Ab 12\+3=x\?' is \[\d+, .*\] in base and \[\d+, .*\] in rl"):
        ModelFamily.load(edited(llama_family, tmp_path / "lower", lower_case))


def test_a_bos_token_of_only_one_is_refused_unless_the_run_decides(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    paths = edited(llama_family, tmp_path / "rl", drop_bos)
    with pytest.raises(
        ModelError, match=r"with special tokens, 'Ab 12\+3=x\?' is \[1, .* in base .* text\.bos to always or never"
    ):
        ModelFamily.load(paths)
    assert ModelFamily.load(paths, bos_decided=True).names == ("base", "rl")
    run = RunConfig.build(None, ["text.bos=never"], models={name: str(path) for name, path in paths.items()})
    assert run.family().names == ("base", "rl")


def test_bpe_with_other_merges_is_refused_with_the_first_text(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """Equal vocabularies do not make equal tokenizers."""
    paths = {}
    for name, merges in (
        ("base", [("z", "x"), ("x", "j"), ("zx", "j")]),
        ("rl", [("x", "j"), ("z", "x"), ("zx", "j")]),
    ):
        letters = ["<pad>", "<bos>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "zx", "xj", "zxj"]
        made = Tokenizer(models.BPE({word: i for i, word in enumerate(letters)}, merges, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), behavior="removed")
        made.decoder, made.post_processor = (
            decoders.Fuse(),
            processors.TemplateProcessing(single="$A", special_tokens=[]),
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
        )
        paths[name] = tmp_path / name
        shutil.copytree(llama_family[name], paths[name])
        tokenizer.save_pretrained(paths[name])
    with pytest.raises(ModelError, match=r"'zxj' is \[32\] in base and \[29, 31\] in rl"):
        ModelFamily.load(paths)


def test_the_stages_tell_the_difference_once_and_keep_it(
    llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    paths = family_of(llama_family, tmp_path / "rl", with_thinking, rows=BASE_ROWS + 28)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "abc"}\n')
    command = ["--models", *(f"{name}={path}" for name, path in paths.items())]
    cache = ["cache", *command, "--prompts", str(prompts), "--sites", "resid_post.0", "--out", str(tmp_path / "cache")]
    assert main(cache) == 0
    assert caplog.text.count("rl has 2 tokens that base lacks") == 1
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert "<think> (100)" in manifest["config"]["tokenizers"][0]
    prompts.write_text('{"prompt": "abc <think>"}\n')
    assert main([*cache[:-1], str(tmp_path / "other"), "--dry-run"]) == 2
    assert "prompt '1' has token 100 (<think>), which model base has no token for" in capsys.readouterr().err
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task": "sums", "prompt": "1+1=<think>", "answer": "2"}\n')
    evaluate = [
        "evaluate",
        *command,
        "--tasks",
        str(tasks),
        "--set",
        "tasks.max_new_tokens=8",
        "--out",
        str(tmp_path / "ev"),
    ]
    assert main(evaluate) == 2
    assert "prompt 'tasks-1' has token 100 (<think>), which model base has no token for" in capsys.readouterr().err
