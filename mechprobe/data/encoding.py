"""The text rule at work: the one place where a prompt becomes token ids, in the store and in every stage that asks a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mechprobe.data.chat import Chat, choose_template
from mechprobe.data.config import TextConfig
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, InputError
from mechprobe.json_fields import check_unicode
from mechprobe.progress import tell_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
_DEFAULT = TextConfig()


@dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into token ids by the text rule of a run.

    Attributes:
        tokenizer: The tokenizer: that of the model whose template is used, else that of the first model.
        rule: The settings.
        chat: The chat template; None for plain text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    rule: TextConfig = _DEFAULT
    chat: Chat | None = None

    @classmethod
    def of(cls, tokenizers: "Mapping[str, PreTrainedTokenizerBase]", rule: TextConfig | None = None) -> "PromptEncoder":
        """The encoder of a family, whose models all read the same ids.

        Args:
            tokenizers: Model name to tokenizer, for the whole family.
            rule: The settings; the defaults when None.

        Raises:
            ConfigError: The chat template does not exist or does not read a setting, or ``rule`` needs a BOS token that is missing.
        """
        rule = rule or TextConfig()
        tokenizer, chat = next(iter(tokenizers.values())), None
        if rule.chat_template:
            name, template = choose_template(tokenizers, rule.chat_template)
            tokenizer = tokenizers[name]
            chat = Chat(tokenizer, template, rule.system_prompt, rule.chat_date, rule.enable_thinking)
            if rule.enable_thinking is not None and "enable_thinking" not in template:
                raise ConfigError(
                    f"text.enable_thinking is set, but the chat template of {name} does not read it; remove it."
                )
        if rule.bos == "always" and tokenizer.bos_token_id is None:
            raise ConfigError('text.bos = "always", but the tokenizer has no BOS token; set text.bos = "auto".')
        return cls(tokenizer, rule, chat)

    @property
    def identity(self) -> dict[str, object]:
        """What the ids depend on besides prompts and tokenizer: the rule and the template; empty for the default rule."""
        template = {} if self.chat is None else {"chat_template_sha256": self.chat.template_hash}
        return {**self.rule.identity, **template}

    def render(self, prompt: Prompt) -> str:
        """The text that the models read: the prompt itself, or the conversation up to the start of the response.

        Raises:
            InputError: It is a conversation and no chat template is set, the template cannot print it whole, or the text
                is not valid Unicode.
        """
        check_unicode({"prompt": prompt.prompt, "messages": prompt.messages}, str(prompt))
        if self.chat is not None:
            opened = self.chat.generation_prompt.strip()
            if prompt.messages is None and opened and prompt.prompt.rstrip().endswith(opened):
                raise InputError(
                    f"{prompt} is rendered already (it ends with {opened!r}) and would be rendered twice; set "
                    "text.chat_template=false, or give the question alone."
                )
            return self.chat.render(prompt)
        if prompt.messages is not None:
            raise InputError(f"{prompt} is a list of messages; set text.chat_template=true.")
        return prompt.prompt

    def encode(self, prompt: Prompt) -> Ids:
        """Token ids of a prompt, up to where the response begins.

        Raises:
            InputError: As for `render`, or the prompt has no tokens.
        """
        return self._encoded(prompt)[1]

    def _encoded(self, prompt: Prompt) -> tuple[str, Ids]:
        """The rendered prompt and its token ids."""
        text = self.render(prompt)
        ids = self._ids(text)
        if not ids:
            raise InputError(f"{prompt} has no tokens; remove it, or give a tokenizer that adds a BOS token.")
        return text, ids

    def encode_pair(self, prompt: Prompt, continuation: str) -> tuple[Ids, Ids]:
        """Token ids of a prompt and of its continuation.

        The concatenated text is tokenized and split after the tokens of the prompt. If it does not begin with these tokens
        (a token spans the boundary, or the tokenizer appends a token to every text), the continuation is tokenized alone.

        Raises:
            InputError: As for `encode`, or the continuation has no tokens.
        """
        text, context = self._encoded(prompt)
        whole = self._ids(text + continuation)
        rest = whole[len(context) :] if whole[: len(context)] == context else ()
        rest = rest or self.encode_text(continuation)
        if not rest:
            raise InputError(f"The option {continuation!r} has no tokens; give it a text that the tokenizer knows.")
        return context, rest

    def encode_response(self, prompt: Prompt) -> Ids:
        """Token ids of the prompt's own response, without special tokens of the tokenizer; none where it has none.

        Raises:
            InputError: The response is a message that the template cannot print whole.
        """
        if prompt.reply is not None and self.chat is not None:
            return self.encode_text(self.chat.render_reply(prompt))
        return self.encode_text(prompt.response or "")

    def encode_with(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> Ids:
        """Token ids that another tokenizer gives to the same text of a prompt and its own response."""
        other = replace(self, tokenizer=tokenizer)
        return (*other.encode(prompt), *other.encode_response(prompt))

    def encode_text(self, text: str) -> Ids:
        """Token ids of a text inside a sequence, to which the tokenizer adds no special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids) if text else ()

    def opens_thinking(self, prompt: Prompt, tags: tuple[str, str]) -> bool:
        """Whether the models begin their response to a prompt inside a thinking block, which the rendered prompt opened.

        Args:
            prompt: The prompt.
            tags: Start and end tag of the block.
        """
        start, end = tags
        if self.chat is not None:
            opened = self.chat.generation_prompt
            return opened.rfind(start) > opened.rfind(end)
        return prompt.messages is None and prompt.prompt.rstrip().endswith(start)

    def _ids(self, text: str) -> Ids:
        """Token ids of a rendered text with exactly the leading special tokens that the rule asks for."""
        if self.chat is not None:
            ids, spelled = self.encode_text(text), False
        else:
            ids = tuple(self.tokenizer(text).input_ids)
            lead = self._lead
            spelled = bool(lead) and ids[: 2 * len(lead)] == lead + lead
            if spelled:
                tell_once(
                    f"Prompts begin with {self.tokenizer.decode(list(lead))}, which the tokenizer adds too; it is read once."
                )
            if spelled or (self.rule.bos == "never" and ids[: len(lead)] == lead):
                ids = ids[len(lead) :]
        bos = self.tokenizer.bos_token_id
        if self.rule.bos == "always" and ids[:1] != (bos,):
            ids = (int(str(bos)), *ids)
        return ids

    @cached_property
    def _lead(self) -> Ids:
        """The tokens that the tokenizer puts before every text, such as BOS."""
        alone, framed = (tuple(self.tokenizer("a", add_special_tokens=added).input_ids) for added in (False, True))
        places = (place for place in range(len(framed)) if framed[place : place + len(alone)] == alone)
        return framed[: next(places, 0)]
