"""Readers: every format gives the same prompts, every error names the place, and memory stays small."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mechprobe.data.config import PromptsConfig
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import SourcePrompts, as_prompts, in_order
from mechprobe.errors import ConfigError, InputError

ROWS = [{"id": f"p{i}", "prompt": f"Ünï {i} 😀", "response": f"r{i}" if i % 2 else None, "task": "t"} for i in range(7)]
EXPECTED = [Prompt(row["id"], row["prompt"], row["response"], row["task"]) for row in ROWS]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(tmp_path: Path, kind: str) -> PromptsConfig:
    """Write ROWS in one of the formats."""
    table, folder = datasets.Dataset.from_list(ROWS), tmp_path / kind
    match kind:
        case "jsonl":
            jsonl(tmp_path / "a.jsonl", ROWS)
            return PromptsConfig(file=str(tmp_path / "a.jsonl"))
        case "parquet":
            pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
            return PromptsConfig(file=str(tmp_path / "a.parquet"))
        case "saved":
            table.save_to_disk(folder)
            return PromptsConfig(file=str(folder))
        case "saved splits":
            datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(folder)
            return PromptsConfig(file=str(folder), split="train")
        case "folder":
            (folder / "data").mkdir(parents=True)
            table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
            return PromptsConfig(file=str(folder))
        case "csv":
            table.to_csv(tmp_path / "a.csv", index=False)
            return PromptsConfig(file=str(tmp_path / "a.csv"), format="dataset")
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "saved splits", "folder", "csv"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    prompts = as_prompts(write(tmp_path, kind))
    assert list(prompts) == EXPECTED
    assert len(prompts) == 7
    assert isinstance(prompts, SourcePrompts)
    assert prompts.take([5, 0, 3]) == [EXPECTED[5], EXPECTED[0], EXPECTED[3]]
    assert (prompts[-1], prompts[1:3]) == (EXPECTED[-1], EXPECTED[1:3])


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n  two\u0085 2\n\n \u00a0\nthree\nfour".encode())
    assert [(p.id, p.prompt) for p in as_prompts(path)] == [
        ("1", "one"), ("2", "  two\u0085 2"), ("5", "three"), ("6", "four"),
    ]  # fmt: skip
    apart = as_prompts(PromptsConfig(file=str(path), format="paragraphs"))
    assert [(p.id, p.prompt) for p in apart] == [("1", "one\n  two\u0085 2"), ("5", "three\nfour")]
    assert apart[1].where == f"{path}:5"


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [{"q": "a", "a": "b", "prompt": 3, "n": 9}, {"q": "c", "prompt": 4, "n": 8}]
    config = PromptsConfig(
        file=str(jsonl(tmp_path / "a.jsonl", rows)), prompt_field="q", response_field="a", id_field="n"
    )
    assert list(as_prompts(config)) == [Prompt("9", "a", "b"), Prompt("8", "c")]


def test_messages(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "x"},
    ]
    rows = [{"messages": turns}, {"messages": turns[:2]}]
    expected = [
        Prompt("1", "x", None, None, tuple(turns)),
        Prompt("2", "hi", "yo", None, ({"role": "user", "content": "hi"},)),
    ]
    config = PromptsConfig(file=str(jsonl(tmp_path / "a.jsonl", rows)), messages_field="messages")
    assert list(as_prompts(config)) == expected
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    assert list(as_prompts(config.replace(file=str(tmp_path / "a.parquet")))) == expected


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "'m' is a text; it must be a list"),
        ([], "'m' is empty"),
        (None, "'m' is empty"),
        (["hi"], "'m[0]' is a text"),
        ([{"role": "user"}], "'m[0]' has no 'content' (it has role)"),
        ([{"role": "user", "content": [3]}], "'m[0].content[0]' is a number"),
        ([{"role": "user", "content": None}], "'m[0].content' is empty"),
        ([{"role": "human", "content": "x"}], "role 'human'"),
        ([{"role": "assistant", "content": "x"}], "add a user message"),
    ],
)
def test_malformed_messages_are_errors_with_their_place(tmp_path: Path, messages: object, words: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"m": [{"role": "user", "content": "x"}]}, {"m": messages}])
    with pytest.raises(InputError) as caught:
        as_prompts(PromptsConfig(file=str(path), messages_field="m"))
    assert str(caught.value).startswith(f"{path}:2")
    assert words in str(caught.value)


def table(path: Path, **columns: list) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


PARQUET_DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "null": (lambda p: table(p, prompt=["a", None]), "row 2: 'prompt' is empty (null or NaN)"),
    "nan": (lambda p: table(p, prompt=[float("nan")]), "row 1: 'prompt' is empty (null or NaN)"),
    "number": (lambda p: table(p, prompt=[1.5]), "row 1: 'prompt' is the number 1.5"),
    "bytes": (lambda p: table(p, prompt=[b"a"]), "row 1: 'prompt' is a bytes"),
    "nested": (lambda p: table(p, prompt=[["a"]]), "row 1: 'prompt' is a list"),
    "column": (lambda p: table(p, text=["a"]), "has no column 'prompt' (it has text); set prompts.prompt_field"),
    "twice": (
        lambda p: parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt"] * 2), p),
        "2 columns named 'prompt'",
    ),
    "empty": (lambda p: table(p, prompt=pa.array([], pa.string())), "no prompts"),
    "ids": (lambda p: table(p, prompt=["a", "b"], id=["x", "x"]), "row 2: id 'x' is already used in row 1"),
    "garbage": (lambda p: p.write_bytes(b"garbage"), "is not a readable Parquet file"),
    "cut": (lambda p: p.write_bytes(table(p, prompt=["a"] * 99).read_bytes()[:-40]), "is not a readable Parquet file"),
    "missing": (lambda p: None, "does not exist"),
    "folder": (lambda p: p.mkdir(), "no data"),
}


@pytest.mark.parametrize("defect", PARQUET_DEFECTS)
def test_parquet_defects(tmp_path: Path, defect: str) -> None:
    make, words = PARQUET_DEFECTS[defect]
    path = tmp_path / "a.parquet"
    make(path)
    with pytest.raises(InputError) as caught:
        as_prompts(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert words in text
    assert "\n" not in text


def test_dataset_defects(tmp_path: Path) -> None:
    saved = write(tmp_path, "saved splits")
    for config, words in [
        (saved.replace(split=""), r"several splits \(train, test\)"),
        (saved.replace(split="dev"), r"no split 'dev' \(it has train, test\)"),
        (saved.replace(prompt_field="text"), "no column 'text'"),
        (PromptsConfig(file="hub:no/such"), "no/such"),
        (PromptsConfig(file="hub:"), "hub:NAME"),
        (PromptsConfig(file=str(tmp_path / "none"), format="dataset"), "does not exist"),
    ]:
        with pytest.raises(InputError, match=words):
            as_prompts(config)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        as_prompts(tmp_path / "junk")
    with pytest.raises(InputError, match=r"a\.bin.*\.parquet"):
        as_prompts(PromptsConfig(file=str(tmp_path / "junk" / "a.bin"), format="dataset"))


def test_contradictory_settings_are_errors(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConfigError, match="same column"):
        PromptsConfig(file=str(path), prompt_field="task")
    with pytest.raises(ConfigError, match="subset and revision"):
        PromptsConfig(file=str(path), revision="main")
    with pytest.raises(ConfigError, match="jsonl"):
        PromptsConfig(file="hub:a/b", format="jsonl")
    with pytest.raises(ConfigError, match="did you mean 'split'"):
        PromptsConfig(file=str(path), splt="train")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match=r"a\.dat.*prompts\.format"):
        as_prompts(tmp_path / "a.dat")
    with pytest.raises(ConfigError, match="--prompts"):
        as_prompts(PromptsConfig())
    with pytest.raises(InputError, match="'completion'"):
        as_prompts(PromptsConfig(file=str(path), response_field="completion"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_a_file_without_permission_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("x")
    path.chmod(0)
    own = os.geteuid()
    try:
        if own == 0:  # root can read every file, so act as another user
            os.seteuid(65534)
        with pytest.raises((InputError, OSError)) as caught:
            as_prompts(path)
    finally:
        os.seteuid(own)
    assert isinstance(caught.value, InputError)
    assert "permission denied" in str(caught.value)


def test_a_pipe_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="pipe or device"):
        as_prompts(tmp_path / "a.jsonl")


def test_lines_of_text_that_are_too_long_or_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" + b"b" * 10_000_000 + b"\n")
    with pytest.raises(InputError, match=r"a.txt:2 is more than 8,000,000 bytes long"):
        as_prompts(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=r"a.txt:2 is not UTF-8"):
        as_prompts(path)


def test_a_source_that_changes_after_its_check_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    prompts = as_prompts(path)
    jsonl(path, [{**ROWS[0], "prompt": "other"}, *ROWS[1:]])
    with pytest.raises(InputError, match=r"a\.jsonl has changed"):
        list(prompts)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i} {'x' * 9000}\n" for i in range(150)))
    tracemalloc.start()
    prompts = as_prompts(path)
    taken = prompts.take([149, 0, 7])  # type: ignore[attr-defined]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [prompt.prompt.split()[0] for prompt in taken] == ["149", "0", "7"]
    assert peak < path.stat().st_size / 3


def test_in_order_gives_every_prompt_once_in_chunks_of_increasing_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechprobe.data.sources._FIRST_CHUNK", 2)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i}\n" for i in range(11)))
    prompts, order = as_prompts(path), [10, 3, 0, 7, 1, 2, 9, 8, 4, 5, 6]
    for source in (prompts, list(prompts)):
        for all_needed in (True, False):
            found = [(i, p.prompt) for i, p in in_order(source, order, all_needed=all_needed)]
            assert found == [(i, str(i)) for i in order]
