"""Where along a sequence an edit acts: a part of the sequence, a class of tokens, or both."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechprobe.errors import ConfigError, ModelError

Part = Literal["all", "prompt", "response", "last_prompt_token"]
_FORM = re.compile(
    r"(?P<part>\w+)(?::(?P<inverted>not_)?(?P<tokens>special|tokens=\d+(?:,\d+)*))?(?::(?P<dropped>with_dropped))?"
)


@dataclass(frozen=True)
class PositionRule:
    """Where an edit acts.

    Attributes:
        part: ``all``; ``prompt``: the positions of the first forward call; ``response``: those of later calls;
            ``last_prompt_token``: the last unmasked position of each row in the first call. The token that ends the prompt
            belongs to the prompt. The last generated token never enters the model, so no edit acts on it.
        tokens: None for every token; ``special`` for the tokenizer's special tokens; or token ids.
        inverted: Whether the edit acts on every token except those.
        with_dropped: Whether the edit also acts on positions that the crosscoder does not describe, because its store dropped
            them (`mechprobe.dictionary.token_rule.TokenRule`): first positions and positions of enormous norm.
    """

    part: Part = "all"
    tokens: Literal["special"] | tuple[int, ...] | None = None
    inverted: bool = False
    with_dropped: bool = False

    @classmethod
    def parse(cls, text: str) -> "PositionRule":
        """Read ``PART[:TOKENS][:with_dropped]``, for example ``response``, ``all:not_special`` or ``prompt:tokens=5,7``.

        ``TOKENS`` is ``special``, ``not_special``, ``tokens=ID,ID,...`` or ``not_tokens=ID,ID,...``.

        Raises:
            ConfigError: The text is none of these.
        """
        match = _FORM.fullmatch(text)
        if match is None or match["part"] not in get_args(Part):
            raise ConfigError(
                f"'{text}' does not name positions; write {', '.join(get_args(Part))}, and append :special, :not_special, "
                ":tokens=5,7 or :not_tokens=5,7 to select a class of tokens, and :with_dropped to include dropped positions."
            )
        named = match["tokens"]
        tokens = named if named in (None, "special") else tuple(map(int, named.removeprefix("tokens=").split(",")))
        return cls(match["part"], tokens, bool(match["inverted"]), bool(match["dropped"]))  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        text: str = self.part
        if self.tokens is not None:
            named = "special" if self.tokens == "special" else "tokens=" + ",".join(map(str, self.tokens))
            text += f":{'not_' if self.inverted else ''}{named}"
        return text + (":with_dropped" if self.with_dropped else "")

    @property
    def needs_boundary(self) -> bool:
        """Whether the rule depends on where the prompt ends."""
        return self.part != "all"


Positions = str | PositionRule
"""Where an edit acts, as a rule or as its text, see `PositionRule.parse`."""


def as_rule(positions: Positions) -> PositionRule:
    """Parse a text; a rule is returned as it is."""
    return positions if isinstance(positions, PositionRule) else PositionRule.parse(positions)


@dataclass(frozen=True)
class CallTokens:
    """The new tokens of one forward call of the host.

    Attributes:
        ids: Token ids; None where the host is called with embeddings.
        attention: ``[batch pos]``, nonzero where unmasked; None where the call has no mask.
        past_length: Positions in the KV cache before the call.
        width: Number of new positions.
        before: Tokens of each row before the call, without padding; None where the call has no mask.
        n_prompt: Tokens of each row that belong to its prompt; None where the first call is the prompt.
    """

    ids: Int[Tensor, "batch pos"] | None
    attention: Tensor | None
    past_length: int
    width: int
    before: Int[Tensor, " batch"] | None = None
    n_prompt: Int[Tensor, " batch"] | None = None

    @property
    def position(self) -> Int[Tensor, "#batch pos"]:
        """Place of every new token in its sequence, from 0 and without padding; padding itself is below 0 or repeats a place."""
        if self.attention is None or self.before is None:
            return torch.arange(self.past_length, self.past_length + self.width)[None]
        return self.before[:, None] + self.attention.long().cumsum(1) - 1

    @property
    def first(self) -> bool:
        """Whether the cache is empty, so that the call starts a sequence."""
        return self.past_length == 0


class PositionMask:
    """A rule together with the ids of its token class."""

    def __init__(self, rule: PositionRule, special_ids: Sequence[int] | None = None) -> None:
        """Resolve the token class of a rule; ``special_ids`` are the ids of the special tokens.

        Raises:
            ConfigError: The rule names special tokens, and ``special_ids`` is None.
        """
        self.rule = rule
        if rule.tokens == "special" and special_ids is None:
            raise ConfigError(
                f"Positions '{rule}' need the ids of the special tokens; edit a LanguageModel, or pass special_ids."
            )
        ids = special_ids if rule.tokens == "special" else rule.tokens
        self._ids = None if ids is None else torch.tensor(list(ids or ()), dtype=torch.int64)

    def of(self, call: CallTokens) -> Bool[Tensor, "#batch pos"] | bool:
        """Where the edit acts in a call: everywhere (True), nowhere (False), or a mask.

        Raises:
            ModelError: The rule needs token ids that the call lacks, or a later call brings several tokens.
        """
        rule = self.rule
        if call.n_prompt is not None:
            return self._within(call, call.n_prompt)
        if rule.needs_boundary:
            if not call.first and call.width > 1:
                raise ModelError(
                    f"Positions '{rule}' cannot be determined when a later call brings {call.width} tokens at once; "
                    "pass the whole prompt in one call, and use greedy or sampled decoding."
                )
            if call.first == (rule.part == "response"):
                return False
        found = self._last(call) if rule.part == "last_prompt_token" else None
        if self._ids is None:
            return True if found is None else found
        of_class = self._of_class(call)
        return of_class if found is None else of_class & found.to(of_class.device)

    def _within(self, call: CallTokens, n_prompt: Int[Tensor, " batch"]) -> Bool[Tensor, "#batch pos"] | bool:
        """Where the edit acts in a call that may hold prompt and response."""
        of_class = True if self._ids is None else self._of_class(call)
        if not self.rule.needs_boundary:
            return of_class
        place, end = call.position, n_prompt[:, None]
        in_part = {"prompt": place < end, "response": place >= end, "last_prompt_token": place == end - 1}[
            self.rule.part
        ]
        return in_part if of_class is True else of_class & in_part.to(of_class.device)

    def _of_class(self, call: CallTokens) -> Bool[Tensor, "batch pos"]:
        if call.ids is None or self._ids is None:
            raise ModelError(f"Positions '{self.rule}' need input_ids; inputs_embeds do not identify tokens.")
        if self._ids.device != call.ids.device:
            self._ids = self._ids.to(call.ids.device)
        found = torch.isin(call.ids, self._ids, invert=self.rule.inverted)
        if self.rule.tokens == "special" and call.attention is not None:
            found = found & call.attention.to(found.device).bool()  # padding is never edited, whichever token fills it
        return found

    @staticmethod
    def _last(call: CallTokens) -> Bool[Tensor, "#batch pos"]:
        if call.attention is not None:
            real = call.attention.bool()
            return real & (real.flip(1).cumsum(1).flip(1) == 1)
        return (torch.arange(call.width) == call.width - 1)[None]
