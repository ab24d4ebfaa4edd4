"""Prompt files: JSON lines with ``prompt`` and optionally ``id``, ``response`` and ``task``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.artifacts import dump_json, sha256_bytes
from mechprobe.errors import InputError
from mechprobe.records import read_jsonl, text_field


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to run models on.

    Attributes:
        id: Unique in its file; the line number where the file gives none.
        prompt: What is asked.
        response: What follows it; None when there is none, or when a model is to write it.
        task: Name of a group of prompts.
    """

    id: str
    prompt: str
    response: str | None = None
    task: str | None = None


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read a JSON-lines file of prompts.

    Raises:
        InputError: The file is missing, empty or not UTF-8, a line is no JSON object, a field is missing, empty or
            not text, or an id comes twice. The text names file and line.

    Example:
        A line of the file: ``{"id": "a1", "prompt": "CALC 12+7?", "response": "ANS 19", "task": "calculation"}``
    """
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for number, item in read_jsonl(path):
        where = f"{path}:{number}"
        prompt = Prompt(
            id=_identifier(item, number, where),
            prompt=text_field(item, "prompt", where),
            response=_optional(item, "response", where),
            task=_optional(item, "task", where),
        )
        if prompt.id in first_line:
            raise InputError(f"{where}: id {prompt.id!r} is that of line {first_line[prompt.id]} too; make ids unique.")
        first_line[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise InputError(f'{path} holds no prompts; write one JSON object a line, {{"prompt": "..."}}.')
    return prompts


def as_prompts(prompts: Path | str | Iterable[Prompt | str]) -> list[Prompt]:
    """Prompts from a file's path, or from prompts or texts in memory (a text's id is its place in the list).

    Raises:
        InputError: There is none, one is empty, or an id comes twice.
    """
    if isinstance(prompts, str | Path):
        return read_prompts(prompts)
    numbered = enumerate(prompts)
    items = [Prompt(id=str(index), prompt=item) if isinstance(item, str) else item for index, item in numbered]
    if not items:
        raise InputError("The list of prompts is empty; give at least one.")
    seen: set[str] = set()
    for item in items:
        if not item.prompt.strip():
            raise InputError(f"Prompt {item.id!r} is empty; fill it in or drop it.")
        if item.id in seen:
            raise InputError(f"Prompt id {item.id!r} comes twice; make ids unique.")
        seen.add(item.id)
    return items


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 over everything in the prompts, in their order."""
    return sha256_bytes(dump_json([[p.id, p.prompt, p.response, p.task] for p in prompts]).encode())


def _identifier(item: dict[str, Any], number: int, where: str) -> str:
    value = item.get("id")
    if value is None:
        return str(number)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(item, "id", where)


def _optional(item: dict[str, Any], name: str, where: str) -> str | None:
    return None if item.get(name) is None else text_field(item, name, where)
