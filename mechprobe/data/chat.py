"""Chat templates: the token ids of a prompt or a conversation for a chat model."""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.data.prompts import Message, Prompt
from mechprobe.errors import ConfigError, InputError, first_line
from mechprobe.files import sha256_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CLOCK = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


@dataclass(frozen=True)
class Chat:
    """How conversations become tokens.

    Attributes:
        template: The Jinja template.
        system_prompt: System message of conversations that have none; empty to add none.
        date: Date ``YYYY-MM-DD`` for templates that contain the current date. A clock would change the tokens every day.
    """

    template: str
    system_prompt: str = ""
    date: str = "2024-07-26"

    @property
    def template_hash(self) -> str:
        """sha256 of the template."""
        return sha256_bytes(self.template.encode())

    @property
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

    def encode(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the conversation up to the start of the assistant's response.

        Raises:
            InputError: The template rejects the conversation, for example for two consecutive user messages.
        """
        messages = prompt.messages or (Message("user", prompt.prompt),)
        if self.system_prompt and messages[0].role != "system":
            messages = (Message("system", self.system_prompt), *messages)
        template = self.dated_template
        try:
            ids = tokenizer.apply_chat_template(
                [message._asdict() for message in messages],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:  # noqa: BLE001 - a template is a program, which can raise any error
            raise InputError(
                f"{prompt}: the chat template rejects the conversation ({first_line(error)}); correct or remove it."
            ) from None
        return tuple(int(token) for token in ids)  # pyright: ignore[reportArgumentType]


def choose_template(tokenizers: Mapping[str, "PreTrainedTokenizerBase"], wanted: bool | str) -> str:
    """Choose the chat template of a family.

    Args:
        tokenizers: Model name to tokenizer. The tokenizer of a base model often has no template.
        wanted: Name of the model whose template to use; or True if all templates of the family are equal.

    Raises:
        ConfigError: The family, or the named model, has no template; or the templates differ and no model is named.
    """
    templates = {name: template for name, tokenizer in tokenizers.items() if (template := template_of(tokenizer))}
    if isinstance(wanted, str):
        if wanted not in tokenizers:
            raise ConfigError(f"chat_template '{wanted}' is not a model; the models are {', '.join(tokenizers)}.")
        templates = {name: template for name, template in templates.items() if name == wanted}
    if not templates:
        names = wanted if isinstance(wanted, str) else ", ".join(tokenizers)
        raise ConfigError(
            f"chat_template is set, but there is no chat template in the tokenizer of {names}; "
            "remove the setting, or give a model folder with a chat_template.jinja."
        )
    if len(set(templates.values())) > 1:
        raise ConfigError(
            f"The chat templates of {', '.join(templates)} differ; choose one, for example chat_template = '{list(templates)[-1]}'."
        )
    return next(iter(templates.values()))


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Template of a tokenizer, or its default one if it has several; None if it has none."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
