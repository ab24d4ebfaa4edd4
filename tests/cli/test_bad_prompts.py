"""Prompts that cannot be used: one sentence with file and line or row, exit code 2, nothing written, and soon."""

import ctypes
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from mechprobe.cli import main

Make = Callable[[Path], object]
DATASET = ["--format", "dataset"]
TALK = ["--field", "messages=talk"]
PROMPT = b'{"prompt": "x"}\n'


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def lines(*records: object) -> Make:
    return content("".join(json.dumps(record) + "\n" for record in records).encode())


def table(**columns: object) -> Make:
    return lambda path: parquet.write_table(pa.table(columns), path)


def folder(**files: bytes) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        for name, data in files.items():
            (path / name.replace("_", ".")).write_bytes(data)

    return make


def talk(value: object) -> Make:
    return lines({"talk": [{"role": "user", "content": "x"}]}, {"talk": value})


def saved_empty(path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": []}).save_to_disk(path)


def one_split_empty(path: Path) -> None:
    table = datasets.Dataset.from_dict({"prompt": ["x"]})
    datasets.DatasetDict({"train": table, "test": table.select([])}).save_to_disk(path)


CSV = b"prompt,id\nfine,1\n"
UNCLOSED = CSV + b'"never closed,2\n' + b"more,3\n" * 20_000
CASES: dict[str, tuple[str, Make, list[str], str]] = {
    # JSON lines
    "not UTF-8": ("a.jsonl", content(PROMPT + b'{"prompt": "\xff"}\n'), [], "a.jsonl:2 is not UTF-8"),
    "UTF-16": ("a.jsonl", content('{"prompt": "x"}\n'.encode("utf-16")), [], "a.jsonl:1 is not UTF-8"),
    "field missing": ("a.jsonl", lines({"prompt": "x"}, {"text": "y"}), [], "a.jsonl:2 has no field 'prompt' (it has text)"),
    "field null": ("a.jsonl", lines({"prompt": "x"}, {"prompt": None}), [], "a.jsonl:2: 'prompt' is empty"),
    "empty": ("a.jsonl", content(b""), [], "a.jsonl contains no prompts"),
    "a line of 10 MB": ("a.jsonl", content(PROMPT + b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n'), [], "a.jsonl:2 is more than"),
    "types mixed": ("a.jsonl", lines({"prompt": "x"}, {"prompt": ["x"]}), [], "a.jsonl:2: 'prompt' is a list"),
    "records mixed": ("a.jsonl", lines({"prompt": "x"}, ["x"]), [], "a.jsonl:2 is a list"),
    "nested too deeply": ("a.jsonl", content(b'{"prompt": ' + b"[" * 100_000 + b"\n"), [], "a.jsonl:1 is not a JSON object"),
    "half a surrogate": ("a.jsonl", content(PROMPT + b'{"prompt": "\\ud800"}\n'), [], "a.jsonl:2: 'prompt' has half a surrogate"),
    "ids twice": ("a.jsonl", lines({"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}), [], "a.jsonl:2: id 'a' is already used in line 1"),
    "an array of objects": ("a.json", content(b'[{"prompt": "x"}]\n'), [], "a.json:1 is a list"),
    "too long": ("a.jsonl", lines({"prompt": "x"}, {"prompt": "7" * 80}), [], "a.jsonl:2: prompt '2' has 81 tokens, but the limit is 64"),
    "too long, refused": ("a.jsonl", lines({"prompt": "7" * 50, "response": "7" * 50}), ["--truncate", "refuse"], "a.jsonl:1: prompt '1' has 101 tokens"),
    "all dropped": ("a.jsonl", lines({"prompt": "7" * 80}), ["--truncate", "drop"], "All 1 prompts are longer than 64 tokens"),
    # fields and templates
    "field of another name": ("a.jsonl", lines({"prompt": "x"}), ["--field", "prompt=question"], "a.jsonl:1 has no field 'question' (it has prompt)"),
    "response nowhere": ("a.jsonl", lines({"prompt": "x"}), ["--field", "response=answer"], "a.jsonl has a field 'answer'"),
    "field of no name": ("a.jsonl", lines({"prompt": "x"}), ["--field", "question=prompt"], "write NAME=COLUMN"),
    "messages are text": ("a.jsonl", talk("hi"), TALK, "a.jsonl:2: 'talk' is a text"),
    "messages nested wrong": ("a.jsonl", talk([[{"role": "user", "content": "x"}]]), TALK, "a.jsonl:2: 'talk[0]' is a list"),
    "content nested wrong": ("a.jsonl", talk([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}]), TALK, "a.jsonl:2: 'talk[0].content[1]' is a part of type 'image_url', but models read text alone"),
    "messages with images": ("a.jsonl", talk([{"role": "user", "content": "x", "images": ["a.png"]}]), TALK, "a.jsonl:2: 'talk[0]' has the field 'images'"),
    "half a surrogate in a field that is not read": ("a.jsonl", content(PROMPT + b'{"prompt": "x", "note": ["\\udc00"]}\n'), [], "a.jsonl:2: 'note[0]' has half a surrogate"),
    "half a surrogate in the name of a field": ("a.jsonl", content(PROMPT + b'{"prompt": "x", "\\udc00": 1}\n'), [], "a.jsonl:2: the name of a field, '\\udc00', has half"),
    "NUL in an id": ("a.jsonl", content(b'{"prompt": "x", "id": "a\\u0000"}\n'), [], "a.jsonl:1: 'id' has the control character '\\x00'"),
    "line break in a task": ("a.jsonl", content(b'{"prompt": "x", "task": "a\\nb"}\n'), [], "a.jsonl:1: 'task' has the control character '\\n'"),
    "messages without template": ("a.jsonl", talk([{"role": "user", "content": "x"}]), TALK, "is a list of messages; set text.chat_template"),
    "no chat template": ("a.jsonl", lines({"prompt": "x"}), ["--chat-template"], "there is no chat template in the tokenizer of base"),
    "system prompt alone": ("a.jsonl", lines({"prompt": "x"}), ["--system-prompt", "S"], "system_prompt needs chat_template = true"),
    # text
    "text not UTF-8": ("a.txt", content(b"x\n\n\xe4\n"), [], "a.txt:3 is not UTF-8"),
    "text of 10 MB": ("a.txt", content(b"x\n" + b"y" * 10_000_000), [], "a.txt:2 is more than 8,000,000 bytes long"),
    "blank text": ("a.txt", content(b" \n\n"), [], "a.txt contains no prompts"),
    "suffix unknown": ("a.dat", content(b"x\n"), [], "a.dat does not show its format"),
    "missing": ("a.txt", lambda path: None, [], "a.txt does not exist"),
    "a folder as text": ("a.txt", folder(b_txt=b"x\n"), ["--format", "text"], "a.txt is a folder"),
    # Parquet
    "NaN": ("a.parquet", table(prompt=[float("nan")]), [], "a.parquet: row 1: 'prompt' is empty (null or NaN)"),
    "null": ("a.parquet", table(prompt=["x", None]), [], "a.parquet: row 2: 'prompt' is empty (null or NaN)"),
    "column missing": ("a.parquet", table(text=["x"]), [], "a.parquet has no column 'prompt' (it has text)"),
    "no rows": ("a.parquet", table(prompt=pa.array([], pa.string())), [], "a.parquet contains no prompts"),
    "Parquet ids twice": ("a.parquet", table(prompt=["x", "y"], id=[7, 7]), [], "a.parquet: row 2: id '7' is already used in row 1"),
    "text as Parquet": ("a.parquet", content(b"plain text\n"), [], "a.parquet is not a readable Parquet file"),
    # datasets
    "saved and empty": ("saved", saved_empty, [], "saved contains no prompts"),
    "one split empty": ("saved", one_split_empty, ["--split", "test"], "saved/test contains no prompts"),
    "several splits": ("dir", folder(train_csv=CSV, test_csv=CSV), [], "has several splits (train, test)"),
    "folder without data": ("dir", folder(), [], "dir contains no data"),
    "folder of something else": ("dir", folder(a_bin=b"\x00"), [], "dir cannot be read as a dataset"),
    "text as dataset": ("a.txt", content(b"x\n"), DATASET, "a.txt: row 1 has no field 'prompt' (it has text)"),
    "unknown as dataset": ("a.tex", content(b"x\n"), DATASET, "a.tex is not a known data file"),
    "quote never closed": ("a.csv", content(UNCLOSED), DATASET, "starting at row 2, an unclosed quote"),
    "quote in a folder": ("dir", folder(train_csv=UNCLOSED), [], "dir/train.csv cannot be read"),
    "rows too wide": ("a.csv", content(CSV + b"a,b,c,d\n"), DATASET, "Expected 2 fields in line 3, saw 4"),
    "CSV not UTF-8": ("a.csv", content(CSV + b"\xe4,2\n"), DATASET, "a.csv:3 is not UTF-8"),
    "CSV of numbers": ("a.csv", content(b"prompt\n1\n2\n"), DATASET, "a.csv: row 1: 'prompt' is the number"),
    "CSV cell missing": ("a.csv", content(CSV + b",2\n"), DATASET, "a.csv: row 2: 'prompt' is empty"),
    "CSV empty": ("a.csv", content(b""), DATASET, "a.csv cannot be read as a dataset"),
    "JSON of a dataset": ("a.jsonl", content(PROMPT + b"nonsense\n"), DATASET, "a.jsonl cannot be read as a dataset"),
    "hub, offline": ("hub:no/such", lambda path: None, [], "The hub did not provide the dataset no/such"),
}  # fmt: skip


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupts what hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(capfd: pytest.CaptureFixture[str], family: dict[str, Path], prompts: object, *arguments: str) -> str:
    """The one sentence that ``mechprobe cache`` ends with."""
    out = family["out"]
    call = ["cache", "--models", f"base={family['base']}", "--sites", "resid_post.0", "--out", str(out)]
    capfd.readouterr()
    with at_most(60):
        code = main([*call, "--prompts", str(prompts), *arguments])
    captured = capfd.readouterr()
    assert (code, captured.out) == (2, "")
    [sentence] = captured.err.splitlines()
    assert sentence.startswith("mechprobe: ")
    assert not out.exists()
    return sentence


@pytest.fixture
def family(llama_family: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {"base": llama_family["base"], "out": tmp_path / "out"}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case: str, tmp_path: Path, family: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    name, make, arguments, words = CASES[case]
    path = tmp_path / name
    make(path)
    sentence = refused(capfd, family, name if name.startswith("hub:") else path, *arguments)
    assert words in sentence
    assert len(sentence) < 500 + len(str(path))


@contextmanager
def without_root_rights() -> Iterator[None]:
    """File permissions hold for root too: two capabilities are laid down for a while (Linux)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of capget(2), this thread
    before, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    for capabilities in (before, fewer):
        assert libc.capget(header, capabilities) == 0
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.csv", "dir", "dir/a.jsonl"])
def test_no_permission(name: str, tmp_path: Path, family: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    closed = path.parent if "/" in name else path
    if "dir" in name:
        (tmp_path / "dir").mkdir()
        (tmp_path / "dir" / "train.csv").write_bytes(CSV)
    else:
        path.write_bytes(PROMPT)
    arguments = DATASET if name.endswith(".csv") else []
    closed.chmod(0)
    try:
        with without_root_rights():
            assert not os.access(closed, os.R_OK, effective_ids=True)
            sentence = refused(capfd, family, path, *arguments)
    finally:
        closed.chmod(0o755)
    assert "permission denied" in sentence.lower()
    assert name.split("/")[0] in sentence
