"""Prompts of every source through the command line into a real store, whose rows are what the tokenizer says."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from sae_training import Crosscoder

Texts = Mapping[str, tuple[str, str]]
"""Id to prompt and response."""

TEXTS: Texts = {f"p{i}": (f"{i} plus {i * i}?", f"It is {i + i * i}") for i in range(9)}
LINES: Texts = {str(number): (f"line {number}: {'x' * number}", "") for number in (1, 2, 4, 5)}
RECORDS = [{"id": name, "prompt": prompt, "response": response} for name, (prompt, response) in TEXTS.items()]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

Cached = Callable[..., ActivationStore]


@pytest.fixture
def cached(tmp_path: Path, llama_family: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Cached:
    """Runs ``mechprobe cache`` of one model, or those that are named, and ``store verify``."""

    def run(*arguments: object, **models: Path) -> ActivationStore:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        named = models or {"base": llama_family["base"]}
        argv = ["cache", "--models", *(f"{name}={path}" for name, path in named.items())]
        argv += ["--out", str(out), *map(str, arguments)]
        if "--config" not in argv:
            argv += ["--sites", "resid_post.0"]
        code = main(argv)
        assert code == 0, capsys.readouterr().err
        assert main(["store", "verify", str(out)]) == 0
        assert str(out) in capsys.readouterr().out
        return ActivationStore.open(out)

    return run


@pytest.fixture(scope="module")
def tokenizer(llama_family: dict[str, Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(llama_family["base"])


def ids_of(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], list[int]]:
    return tokenizer(prompt).input_ids, tokenizer(response, add_special_tokens=False).input_ids


Rows = list[tuple[str, int, int, bool]]


def rows_of(store: ActivationStore) -> Rows:
    """``(prompt, place in it, token id, is response)`` of every row, in order of prompt and place."""
    rows = store.tokens
    named = (
        (*store.stream.document_of(row), int(rows.token_id[row]), bool(rows.is_response[row]))
        for row in range(store.n_rows)
    )
    return sorted(named)


def expected(sequences: Mapping[str, tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The same from token ids of prompt and response: every token but special ones."""
    return sorted(
        (name, place, token, place >= len(prompt))
        for name, (prompt, response) in sequences.items()
        for place, token in enumerate([*prompt, *response])
        if token not in tokenizer.all_special_ids
    )


def jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def source(tmp_path: Path, kind: str) -> tuple[list[object], Texts]:
    """Arguments that name a source of one kind, and what it holds."""
    folder = tmp_path / "source"
    folder.mkdir()
    match kind:
        case "text":
            path = folder / "a.txt"
            path.write_text("".join(LINES.get(str(n), ("",))[0] + "\n" for n in range(1, 6)))
            return ["--prompts", path], LINES
        case "paragraphs":
            (folder / "a.txt").write_text("a\n b\n\n\nc\n")
            return ["--prompts", folder / "a.txt", "--format", "paragraphs"], {"1": ("a\n b", ""), "5": ("c", "")}
        case "parquet with other columns":
            frame = pd.DataFrame(RECORDS).rename(columns={"prompt": "q", "response": "prompt", "id": "name"})
            frame.to_parquet(folder / "a.parquet")
            fields = ["--field", "prompt=q", "--field", "response=prompt", "--field", "id=name"]
            return ["--prompts", folder / "a.parquet", *fields], TEXTS
        case "save_to_disk":
            table = datasets.Dataset.from_list(RECORDS)
            five, rest = table.select(range(5)), table.select(range(5, 9))
            datasets.DatasetDict({"train": five, "test": rest}).save_to_disk(folder / "saved")
            return ["--prompts", folder / "saved", "--split", "test"], dict(list(TEXTS.items())[5:])
        case "CSV folder":
            pd.DataFrame(RECORDS).to_csv(folder / "train.csv", index=False)
            return ["--prompts", folder], TEXTS
        case "run.toml":
            jsonl(folder / "a.data", RECORDS)
            path = folder / "run.toml"
            path.write_text(
                '[prompts]\nfile = "a.data"\nformat = "jsonl"\nresponse_field = ""\n\n'
                '[cache]\nsites = ["resid_post.1"]\nmax_length = 20\n'
            )
            return ["--config", path], {name: (prompt, "") for name, (prompt, _) in TEXTS.items()}
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind", ["text", "paragraphs", "parquet with other columns", "save_to_disk", "CSV folder", "run.toml"]
)
def test_a_store_of_every_source(tmp_path: Path, cached: Cached, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    arguments, texts = source(tmp_path, kind)
    store = cached(*arguments)
    assert rows_of(store) == expected({name: ids_of(tokenizer, *text) for name, text in texts.items()}, tokenizer)
    assert [str(site) for site in store.sites] == ["resid_post.1" if kind == "run.toml" else "resid_post.0"]
    for sample, sequence in enumerate(store.stream.sequences):
        prompt, response = ids_of(tokenizer, *texts[sequence.prompt_id])
        assert (list(sequence.prompt_ids), list(sequence.response_ids)) == (prompt, response)
        assert store.sequence(sample).documents == ()


def test_a_chat_template(
    tmp_path: Path, llama_family: dict[str, Path], cached: Cached, tokenizer: PreTrainedTokenizerBase
) -> None:
    base = Path(shutil.copytree(llama_family["base"], tmp_path / "chat"))
    (base / "chat_template.jinja").write_text(TEMPLATE)
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "four"}]
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]
    prompts = jsonl(tmp_path / "a.jsonl", [{"talk": turns}, {"talk": own}])
    chat = ["--prompts", prompts, "--chat-template", "--field", "messages=talk"]
    answer = tokenizer("four", add_special_tokens=False).input_ids
    # Characters are tokens, and the marks of the special ones are read as such.
    asked = tokenizer("[system]Be kind<eos>[user]2+2<eos>[assistant]").input_ids
    other = tokenizer("[system]S<eos>[user]hi<eos>[assistant]").input_ids
    store = cached(*chat, "--system-prompt", "Be kind", base=base)
    assert rows_of(store) == expected({"1": (asked, answer), "2": (other, [])}, tokenizer)
    assert tokenizer.eos_token_id in asked  # runs through the models, and makes no row
    assert {tuple(s.ids) for s in store.stream.sequences} == {(*asked, *answer), tuple(other)}


def test_packed_documents_and_training_on_them(
    tmp_path: Path, llama_family: dict[str, Path], cached: Cached, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {str(n): (f"{n}: {'abcdefghijklmnopqrstuvwxyz'[: n % 19]}", "") for n in range(1, 61)}
    prompts = tmp_path / "a.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt, _ in texts.values()))
    store = cached("--prompts", prompts, "--pack", "--max-length", 48, base=llama_family["base"], rl=llama_family["rl"])
    whole = {name: ids_of(tokenizer, *text) for name, text in texts.items()}
    assert rows_of(store) == expected(whole, tokenizer)
    assert store.n_samples < 40
    model = AutoModelForCausalLM.from_pretrained(llama_family["rl"], attn_implementation="eager")
    for sample in range(store.n_samples):
        sequence = store.sequence(sample)
        apart = [whole[document.id][0] for document in sequence.documents]
        ids = [token for document in apart for token in (*document, tokenizer.eos_token_id)][:-1]
        assert list(sequence.ids) == ids
        assert len(ids) <= 48
        assert [document.start for document in sequence.documents] == [
            sum(len(d) + 1 for d in apart[:n]) for n in range(len(apart))
        ]
        rows = store.rows_of("rl", sequence.rows.start, sequence.rows.stop)
        with torch.no_grad():
            resid = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(rows, resid[np.flatnonzero(sequence.kept)], atol=1e-5, rtol=1e-5)
        assert len(set(store.tokens.held_out[sequence.rows.start : sequence.rows.stop].tolist())) == 1
    small = ["train_sae.d_sae=40", "train_sae.k=4", "train_sae.n_tokens=8000", "train_sae.batch_size=100"]
    out = tmp_path / "crosscoder"
    assert main(["train-sae", "--cache", str(store.folder), "--out", str(out), "--set", *small]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["distinct_tokens"] == int(store.in_split("train").sum())
    assert Crosscoder.load(out).config.model_names == ("base", "rl")


@pytest.mark.parametrize("truncate", ["left", "right", "drop"])
def test_what_is_too_long(tmp_path: Path, cached: Cached, tokenizer: PreTrainedTokenizerBase, truncate: str) -> None:
    limit = 18
    whole = {name: ids_of(tokenizer, *text) for name, text in TEXTS.items()}
    too_long = {name for name, (prompt, response) in whole.items() if len(prompt) + len(response) > limit}
    assert 0 < len(too_long) < len(whole)

    def cut(prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        over = len(prompt) + len(response) - limit
        if over <= 0:
            return prompt, response
        return (prompt[:1] + prompt[1 + over :], response) if truncate == "left" else (prompt, response[:-over])

    kept = {name: cut(*ids) for name, ids in whole.items() if truncate != "drop" or name not in too_long}
    store = cached("--prompts", jsonl(tmp_path / "a.jsonl", RECORDS), "--truncate", truncate, "--max-length", limit)
    assert rows_of(store) == expected(kept, tokenizer)
    counts = store.manifest["counts"]
    found = (counts["sequences_cut"], counts["prompts_dropped"])
    assert found == ((0, len(too_long)) if truncate == "drop" else (len(too_long), 0))
