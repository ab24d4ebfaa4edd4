"""Chat templates: a prompt, or a conversation, as the tokens that a chat model is asked with."""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.data.prompts import Message, Prompt
from mechprobe.errors import ConfigError, InputError
from mechprobe.files import sha256_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CLOCK = re.compile(r"strftime_now\s*\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


@dataclass(frozen=True)
class Chat:
    """How conversations become tokens.

    Attributes:
        template: The Jinja template.
        system_prompt: First message of every conversation that has no system message; empty for none.
        date: Today's date for templates that ask for it, ``YYYY-MM-DD``: a clock would make other tokens tomorrow.
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
        """The template with ``date`` written out where it asks a clock (it takes no such function from outside).

        Raises:
            ConfigError: It asks in a way that cannot be replaced.
        """
        day = datetime.date.fromisoformat(self.date)
        dated = _CLOCK.sub(lambda found: json.dumps(day.strftime(found["format"])), self.template)
        if re.search(r"strftime_now\s*\(", dated):
            raise ConfigError(
                "The chat template asks a clock for a format that it computes; give a template that does not."
            )
        return dated

    def encode(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the conversation up to where the assistant's answer begins.

        Raises:
            InputError: The template refuses the conversation (two turns of the user, a system message ...).
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
        except Exception as error:  # noqa: BLE001 - a template is a program: it raises what it likes
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:200]
            raise InputError(f"{prompt}: the chat template does not take it ({reason}); mend or drop it.") from None
        return tuple(int(token) for token in ids)  # pyright: ignore[reportArgumentType]


def choose_template(tokenizers: Mapping[str, "PreTrainedTokenizerBase"], wanted: bool | str) -> str:
    """The chat template of a family.

    Args:
        tokenizers: Model name to tokenizer; a base model's often has no template.
        wanted: True for the template that all have who have one; or the name of the model whose it shall be.

    Raises:
        ConfigError: There is none, or there are several and none is named.
    """
    templates = {name: template for name, tokenizer in tokenizers.items() if (template := template_of(tokenizer))}
    if isinstance(wanted, str):
        if wanted not in tokenizers:
            raise ConfigError(
                f"chat_template names '{wanted}', which is no model; the models are {', '.join(tokenizers)}."
            )
        templates = {name: template for name, template in templates.items() if name == wanted}
    if not templates:
        whose = f"of {wanted} has" if isinstance(wanted, str) else "of the models has"
        none = "the tokenizer " + whose if isinstance(wanted, str) or len(tokenizers) == 1 else "no tokenizer " + whose
        raise ConfigError(
            f"chat_template is set, and {none}{' no' if none.startswith('the') else ' a'} chat template; "
            "leave it out, or give a model folder with one (chat_template.jinja)."
        )
    if len(set(templates.values())) > 1:
        raise ConfigError(
            f"The chat templates of {', '.join(templates)} differ; name one: chat_template = '{list(templates)[-1]}'."
        )
    return next(iter(templates.values()))


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's own template, or its default one where it has several; None where it has none."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
