"""Messages of conversations: what a record may contain, and the texts that a chat template must not lose."""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from mechprobe.errors import InputError
from mechprobe.json_fields import check_unicode, full_text, json_kind

Message = Mapping[str, Any]
"""One message as its source holds it: ``role``, ``content``, and whatever else the chat template reads."""

ROLES = ("system", "user", "assistant", "tool", "developer")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which servers and data sets keep the thinking of a message apart from its content."""
CALLS = ("tool_calls", "function_call")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def read_messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """The messages in the field ``name`` of a record.

    Raises:
        InputError: They are no conversation of texts; the message begins with ``where``.
    """
    if value is None or value == []:
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the record.")
    if not isinstance(value, list):
        raise InputError(f"{where}: '{name}' is {json_kind(value)}; it must be a list of messages.")
    return tuple(_read(item, f"{name}[{number}]", where) for number, item in enumerate(value))


def _read(item: Any, name: str, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: '{name}' is {json_kind(item)}; it must be an object with role and content.")
    # Tables give every row all fields of their column; those that a message does not use are null there.
    message = {str(key): value for key, value in item.items() if value is not None and value not in ([], "", {})}
    media = next((key for key in _MEDIA if key in message), None)
    if media:
        raise InputError(f"{where}: '{name}' has the field '{media}', but models read text alone; remove the record.")
    needed = ("role", "content") if is_plain(message) else ("role",)
    for field in needed:
        if field not in item:
            found = ", ".join(sorted(map(str, item))) or "nothing"
            raise InputError(f"{where}: '{name}' has no '{field}' (it has {found}); add it.")
    role = full_text(item["role"], f"{name}.role", where)
    if role not in ROLES:
        raise InputError(f"{where}: '{name}' has the unknown role {role!r}; the roles are {', '.join(ROLES)}.")
    for key in REASONING:
        if key in message:
            full_text(message[key], f"{name}.{key}", where)
    if isinstance(message.get("content"), list):
        message["content"] = _parts(message["content"], f"{name}.content", where)
    elif "content" in (*message, *needed):
        full_text(item["content"], f"{name}.content", where)
    check_unicode(message, where, name)
    return message


def _parts(parts: list[Any], name: str, where: str) -> list[dict[str, str]]:
    """The parts of a content, all of which must be texts."""
    found = []
    for number, part in enumerate(parts):
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        kind = "text" if isinstance(part, str) else part.get("type", "text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text"):
            what = f"a part of type {kind!r}" if kind else json_kind(part)
            raise InputError(f"{where}: '{name}[{number}]' is {what}, but models read text alone; remove the record.")
        found.append({"type": "text", "text": full_text(text, f"{name}[{number}].text", where)})
    return found


def content_text(message: Message) -> str:
    """The content of a message as one text; parts are joined by line breaks, and a message may have none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def is_plain(message: Message) -> bool:
    """Whether the content is all that a message says."""
    return not any(message.get(key) for key in (*REASONING, *CALLS))


def spoken(message: Message) -> Iterator[tuple[str, str]]:
    """``(field, text)`` for every text of a message that its rendering must contain."""
    content = message.get("content") or ()
    if isinstance(content, str):
        yield "content", content
    else:
        for number, part in enumerate(content):
            yield f"content[{number}]", part["text"]
    for key in REASONING:
        if message.get(key):
            yield key, message[key]
    for key in CALLS:
        yield from ((key, text) for text in _leaves(message.get(key)))


def _leaves(value: Any, key: str = "") -> Iterator[str]:
    """Names and arguments in the calls of a message; ids and types are no text."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    elif isinstance(value, str) and value and key not in ("id", "type"):
        try:
            inner = json.loads(value) if key == "arguments" else None
        except ValueError:
            inner = None
        if isinstance(inner, dict | list):  # servers give arguments as JSON in a text, and templates print either form
            yield from _leaves(inner)
        else:
            yield value


def squeezed(text: str) -> str:
    """A text without white space, which templates trim and re-indent."""
    return "".join(text.split())


def content_key(prompt: str, messages: tuple[Message, ...] | None = None) -> str:
    """Hash of what a prompt says, apart from white space: prompts with equal keys stand on the same side of every split."""
    alone = messages is None or (len(messages) == 1 and messages[0]["role"] == "user" and is_plain(messages[0]))
    if messages is not None and not alone:
        prompt = json.dumps(
            [[message["role"], *(_normal(text) for _, text in spoken(message))] for message in messages],
            ensure_ascii=False,
        )
    return blake2b(_normal(prompt).encode(), digest_size=16).hexdigest()


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))
