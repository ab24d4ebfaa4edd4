"""A prompt, and the hash of many prompts."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from mechprobe.data.messages import Message, content_key


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to run models on.

    Attributes:
        id: Name that is unique in its source; the number of the line or row if the source has none.
        prompt: The prompt; for a conversation, the text of its last message.
        response: The response that follows; None if there is none, or if a model generates it.
        task: Name of a group of prompts.
        messages: The conversation that the chat template converts to the prompt; None for plain text.
        reply: The response as a message, if it says more than its content; the chat template renders it.
        where: Source and line, for error messages.
    """

    id: str
    prompt: str
    response: str | None = None
    task: str | None = None
    messages: tuple[Message, ...] | None = None
    reply: Message | None = None
    where: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        """Name of the prompt in error messages."""
        return f"{self.where}: prompt {self.id!r}" if self.where else f"Prompt {self.id!r}"

    @property
    def content_key(self) -> str:
        """Hash of what the prompt says: prompts with equal keys stand on the same side of every split."""
        return content_key(self.prompt, self.messages)


class PromptsHash:
    """Incremental sha256 over prompts."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"[")
        self._empty = True

    def add(self, prompt: Prompt) -> None:
        """Add the next prompt."""
        fields: list[object] = [prompt.id, prompt.prompt, prompt.response, prompt.task]
        if prompt.messages is not None:
            fields.append([dict(message) for message in prompt.messages])
        if prompt.reply is not None:
            fields.append(dict(prompt.reply))
        # The hashed text is that of `dump_json` for the whole list.
        text = json.dumps(fields, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        self._digest.update(f"{'' if self._empty else ','}\n  {text}".encode())
        self._empty = False

    def hexdigest(self) -> str:
        """Hash of the prompts added so far."""
        digest = self._digest.copy()
        digest.update(b"]\n" if self._empty else b"\n]\n")
        return digest.hexdigest()


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """sha256 over all fields of the prompts, in order."""
    digest = PromptsHash()
    for prompt in prompts:
        digest.add(prompt)
    return digest.hexdigest()
