"""Prompt files: every error is one sentence with file and line."""

from pathlib import Path

import pytest

from mechprobe.data.prompts import Prompt, prompts_hash
from mechprobe.data.sources import as_prompts, hash_of
from mechprobe.errors import InputError
from mechprobe.files import dump_json, sha256_bytes


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_fields_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"id": "a", "prompt": "1+1=", "response": "2", "task": "sum"}\n\n{"prompt": "é😀"}\n{"id": 7, "prompt": "x"}\n',
    )
    assert list(as_prompts(path)) == [Prompt("a", "1+1=", "2", "sum"), Prompt("3", "é😀"), Prompt("7", "x")]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('{"prompt": "a"}\n{"id": "b"}\n', 2, "no field 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": "  "}\n', 2, "'prompt' is empty"),
        ('{"prompt": ["a"]}\n', 1, "'prompt' is a list"),
        ('{"prompt": {"text": "a"}}\n', 1, "'prompt' is an object"),
        ('{"prompt": "a"}\n{"prompt": null}\n', 2, "'prompt' is empty (null or NaN)"),
        ('{"prompt": NaN}\n', 1, "'prompt' is empty (null or NaN)"),
        ('{"prompt": "half \\ud83d"}\n', 1, "half a surrogate pair"),
        ('{"prompt": ' + "9" * 5000 + "}\n", 1, "is not a JSON object"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', 2, "'prompt' is the number"),
        ('{"prompt": "a", "response": 3}\n', 1, "'response' is the number"),
        ('{"prompt": "a", "task": []}\n', 1, "'task' is a list"),
        ('{"prompt": "a", "id": true}\n', 1, "'id' is true or false"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', 2, "id 'x' is already used in line 1"),
        ('{"prompt": "a", "id": "2"}\n{"prompt": "b"}\n', 2, "id '2' is already used in line 1"),
        ("not json\n", 1, "is not a JSON object"),
        ("[1, 2]\n", 1, "is a list"),
        ("[" * 100_000 + "\n", 1, "is not a JSON object"),
        (b'{"prompt": "a"}\n{"prompt": "\xff\xfe"}\n', 2, "is not UTF-8"),
        ('{"prompt": "' + "a" * 10_000_000 + '"}\n', 1, "bytes long"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, content: bytes | str, line: int, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        as_prompts(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{line}")
    assert words in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="no prompts"):
        as_prompts(write(tmp_path, content))


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        as_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no data"):
        as_prompts(tmp_path)


def test_prompts_in_memory() -> None:
    assert as_prompts(["a", "b"]) == [Prompt("0", "a"), Prompt("1", "b")]
    with pytest.raises(InputError, match="empty"):
        as_prompts([])
    with pytest.raises(InputError, match="'1' is empty"):
        as_prompts(["a", " "])
    with pytest.raises(InputError, match="half a surrogate"):
        as_prompts(["a", "\ud83d"])
    with pytest.raises(InputError, match="'x' is used twice"):
        as_prompts([Prompt("x", "a"), Prompt("x", "b")])


def test_the_hash_of_a_file_is_that_of_its_prompts_and_of_their_json(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a\\nb", "task": "é"}\n{"prompt": "c", "response": "\\"d"}\n')
    prompts = as_prompts(path)
    whole = [[p.id, p.prompt, p.response, p.task] for p in prompts]
    assert hash_of(prompts) == prompts_hash(list(prompts)) == sha256_bytes(dump_json(whole).encode())
    assert prompts_hash([]) == sha256_bytes(dump_json([]).encode())


def test_the_hash_sees_every_field_and_the_order() -> None:
    one = [Prompt("a", "b"), Prompt("c", "d")]
    others = [
        [Prompt("a", "b"), Prompt("c", "e")],
        [Prompt("a", "b"), Prompt("x", "d")],
        [Prompt("a", "b", "r"), Prompt("c", "d")],
        [Prompt("a", "b", None, "t"), Prompt("c", "d")],
        [Prompt("a", "b", None, None, ({"role": "user", "content": "b"},)), Prompt("c", "d")],
        one[::-1],
    ]
    assert prompts_hash(one) == prompts_hash([Prompt("a", "b"), Prompt("c", "d")])
    assert len({prompts_hash(prompts) for prompts in [one, *others]}) == 7
