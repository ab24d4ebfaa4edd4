"""Chat templates: a prompt or a conversation as a chat model reads it. Nothing that a message says is left out silently."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechprobe.data.messages import CALLS, REASONING, Message, content_text, spoken, squeezed
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, InputError, first_line, is_out_of_memory
from mechprobe.files import sha256_bytes
from mechprobe.progress import tell_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CLOCK = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


@dataclass(frozen=True)
class Chat:
    """How conversations become tokens.

    Attributes:
        tokenizer: Tokenizer whose special tokens the template prints.
        template: The Jinja template.
        system_prompt: System message of conversations that have none; empty to add none.
        date: Date ``YYYY-MM-DD`` for templates that contain the current date. A clock would change the tokens every day.
        enable_thinking: Value of ``enable_thinking`` that the template receives; None passes none.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    system_prompt: str = ""
    date: str = "2024-07-26"
    enable_thinking: bool | None = None

    @property
    def template_hash(self) -> str:
        """sha256 of the template."""
        return sha256_bytes(self.template.encode())

    @cached_property
    def dated_template(self) -> str:
        """The template with ``date`` in place of its calls of the clock, which it does not accept as a parameter.

        Raises:
            ConfigError: The template computes the format that it passes to the clock.
        """
        day = datetime.date.fromisoformat(self.date)
        dated = _CLOCK.sub(lambda found: json.dumps(day.strftime(found["format"])), self.template)
        if re.search(r"strftime_now\s*\(", dated):
            raise ConfigError(
                "The chat template calls strftime_now with a computed format, so its date cannot be fixed; "
                "give a template with a literal format."
            )
        return dated

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template prints the parts of a content; others would print the list as Python does."""
        try:
            text = self._apply(
                [{"role": "user", "content": [{"type": "text", "text": part} for part in _PROBES]}], True
            )
        except Exception as error:  # a template is a program, which can raise any error
            if is_out_of_memory(error):
                raise
            return False
        return all(part in text for part in _PROBES) and "'type'" not in text and '"type"' not in text

    @cached_property
    def generation_prompt(self) -> str:
        """What the template adds to the conversation for the assistant to begin, such as the start of its turn."""
        asked = [{"role": "user", "content": _PROBES[0]}]
        try:
            before, whole = (self._apply(asked, open_) for open_ in (False, True))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return ""
        return whole.removeprefix(before) if whole.startswith(before) else ""

    def render(self, prompt: Prompt) -> str:
        """The conversation up to the start of the assistant's response.

        Raises:
            InputError: The template rejects the conversation, or would leave out something that a message says.
        """
        messages = self._conversation(prompt)
        text = self._rendered(messages, prompt)
        self._check_spoken(messages, text, prompt)
        return text

    def render_reply(self, prompt: Prompt) -> str:
        """The response to a conversation as the template prints it, with its thinking and without the end of the turn.

        Raises:
            InputError: The template does not print the response whole, directly after the start of the assistant's turn.
        """
        assert prompt.reply is not None, "only a response that is a message is rendered"
        messages, reply = self._conversation(prompt), self._named(prompt.reply)
        opened = self._rendered(messages, prompt)
        whole = self._rendered([*messages, reply], prompt, open_=False)
        marked = self._rendered([*messages, {"role": "assistant", "content": _PROBES[0]}], prompt, open_=False)
        if not whole.startswith(opened):
            raise InputError(
                f"{prompt}: with {' and '.join(key for key in (*REASONING, *CALLS) if key in reply)}, the chat template begins "
                "the response in another way than it asks for one; set text.enable_thinking, or remove the field."
            )
        text = whole.removeprefix(opened).removesuffix(marked.rpartition(_PROBES[0])[2])
        self._check_spoken([reply], text, prompt, of_reply=True)
        return text

    def _conversation(self, prompt: Prompt) -> list[Message]:
        messages = prompt.messages or ({"role": "user", "content": prompt.prompt},)
        if self.system_prompt and messages[0]["role"] not in ("system", "developer"):
            messages = ({"role": "system", "content": self.system_prompt}, *messages)
        return [self._named(message) for message in messages]

    def _named(self, message: Message) -> Message:
        """A message in the form that the template takes: its own name for thinking, and one text where it takes no parts."""
        own = next((key for key in REASONING if self._reads(key)), None)
        named = {own if own and key in REASONING else key: value for key, value in message.items()}
        if not isinstance(named.get("content", ""), str) and not self._takes_parts:
            named["content"] = content_text(named)
        return named

    def _rendered(self, messages: Sequence[Message], prompt: Prompt, *, open_: bool = True) -> str:
        try:
            return self._apply(messages, open_)
        except Exception as error:  # noqa: BLE001 - see above
            raise InputError(
                f"{prompt}: the chat template rejects the conversation ({first_line(error)}); correct or remove it."
            ) from None

    def _apply(self, messages: Sequence[Message], open_: bool) -> str:
        switch: dict[str, Any] = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        rendered = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self.dated_template,
            add_generation_prompt=open_,
            tokenize=False,
            **switch,
        )
        return str(rendered)

    def _check_spoken(self, messages: Sequence[Message], text: str, prompt: Prompt, *, of_reply: bool = False) -> None:
        """Refuse a rendering that lacks something that a message says.

        Templates for thinking models leave out the thinking of earlier turns, by design; this is told once.
        """
        printed = squeezed(text)
        for number, message in enumerate(messages, start=1):
            for field, said in spoken(message):
                escaped = (json.dumps(said, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))
                if any(squeezed(form) in printed for form in (said, *escaped)):
                    continue
                thinks, mark, rest = field in REASONING and self._reads(field), *said.rpartition("</think>")[1:]
                if not of_reply and (thinks or (mark and squeezed(rest) in printed)):
                    tell_once(_EARLIER_THINKING)
                    continue
                place = "response" if of_reply else f"{message['role']} message {number}"
                raise InputError(
                    f"{prompt}: the chat template leaves out '{field}' of the {place}; remove the field or the record, or "
                    "choose a template that prints it."
                )

    def _reads(self, field: str) -> bool:
        """Whether the template reads a field of messages."""
        return re.search(rf"(\.|\[\s*['\"]){field}\b", self.template) is not None


_PROBES = ("first-part-of-a-text", "second-part-of-a-text")


_EARLIER_THINKING = "The chat template leaves out the thinking of earlier turns, as it does when the model is served."


def choose_template(tokenizers: Mapping[str, "PreTrainedTokenizerBase"], wanted: bool | str) -> tuple[str, str]:
    """Choose the chat template of a family; returns the name of a model that has it, and the template.

    Args:
        tokenizers: Model name to tokenizer. The tokenizer of a base model often has no template.
        wanted: Name of the model whose template to use; or True if all templates of the family are equal.

    Raises:
        ConfigError: The family, or the named model, has no template; or the templates differ and no model is named.
    """
    templates = {name: template for name, tokenizer in tokenizers.items() if (template := template_of(tokenizer))}
    if isinstance(wanted, str):
        if wanted not in tokenizers:
            raise ConfigError(f"text.chat_template '{wanted}' is not a model; the models are {', '.join(tokenizers)}.")
        templates = {name: template for name, template in templates.items() if name == wanted}
    if not templates:
        names = wanted if isinstance(wanted, str) else ", ".join(tokenizers)
        raise ConfigError(
            f"text.chat_template is set, but there is no chat template in the tokenizer of {names}; "
            "remove the setting, or give a model folder with a chat_template.jinja."
        )
    if len(set(templates.values())) > 1:
        raise ConfigError(
            f"The chat templates of {', '.join(templates)} differ; choose one, for example text.chat_template = '{list(templates)[-1]}'."
        )
    return next(iter(templates.items()))


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Template of a tokenizer, or its default one if it has several; None if it has none."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
