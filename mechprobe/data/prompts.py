"""A prompt, and the hash that stands for many."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to run models on.

    Attributes:
        id: Unique in its source; the number of the line or row where the source gives none.
        prompt: What is asked; the last message's text where there are messages.
        response: What follows it; None when there is none, or when a model is to write it.
        task: Name of a group of prompts.
        messages: A conversation, which the tokenizer's chat template makes the prompt of; None for plain text.
        where: Source and line, for errors.
    """

    id: str
    prompt: str
    response: str | None = None
    task: str | None = None
    messages: tuple[Message, ...] | None = None
    where: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        """What errors call it."""
        return f"{self.where}: prompt {self.id!r}" if self.where else f"Prompt {self.id!r}"


class PromptsHash:
    """sha256 over prompts that come one after another."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"[")
        self._empty = True

    def add(self, prompt: Prompt) -> None:
        """Take one more in."""
        fields = [prompt.id, prompt.prompt, prompt.response, prompt.task]
        if prompt.messages is not None:
            fields.append([list(message) for message in prompt.messages])
        # The text that `dump_json` gives of the whole list, piece by piece.
        text = json.dumps(fields, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        self._digest.update(f"{'' if self._empty else ','}\n  {text}".encode())
        self._empty = False

    def hexdigest(self) -> str:
        """Of everything so far."""
        digest = self._digest.copy()
        digest.update(b"]\n" if self._empty else b"\n]\n")
        return digest.hexdigest()


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """sha256 over everything in the prompts, in their order."""
    digest = PromptsHash()
    for prompt in prompts:
        digest.add(prompt)
    return digest.hexdigest()
