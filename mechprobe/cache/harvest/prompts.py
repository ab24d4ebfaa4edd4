"""From prompts to tokens: which prompts are drawn, which models respond to them, and how long they are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mechprobe.cache.config import CacheConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.lengths import join, pack
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import in_order
from mechprobe.data.stream import kept_positions
from mechprobe.data.tokens import TokenSequence, special_token_ids
from mechprobe.errors import ConfigError, InputError
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """The prompts that models respond to.

    Attributes:
        config: The settings.
        prompt_ids: Token ids of each prompt.
    """

    config: CacheConfig
    prompt_ids: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.prompt_ids)


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts that were drawn and tokenized, before any model responds.

    Attributes:
        prompts: The prompts that were drawn.
        sequences: Token ids of each prompt and its own response, at most ``max_length``.
        max_length: Maximum length of a sequence, in tokens.
        special_ids: Token ids that are never cached.
        config: The settings.
        tokenizer_fingerprint: sha256 of the tokenizer.
        encoder: What turned the prompts into token ids.
        end_id: Token between packed prompts; None where prompts are not packed.
        n_dropped: Number of prompts that were left out because they are too long.
    """

    prompts: tuple[Prompt, ...]
    sequences: tuple[TokenSequence, ...]
    max_length: int
    special_ids: tuple[int, ...]
    config: CacheConfig
    tokenizer_fingerprint: str
    encoder: PromptEncoder
    end_id: int | None = None
    n_dropped: int = 0

    @property
    def prompt_ids(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of each prompt."""
        return tuple(sequence.prompt_ids for sequence in self.sequences)

    @property
    def unanswered(self) -> list[int]:
        """Indices of the prompts that models respond to."""
        if not self.config.responses:
            return []
        return [index for index, prompt in enumerate(self.prompts) if prompt.response is None]

    @property
    def questions(self) -> Questions:
        """The prompts that models respond to."""
        return Questions(self.config, [self.sequences[index].prompt_ids for index in self.unanswered])

    @property
    def identity(self) -> dict[str, Any]:
        """What the tokens depend on besides the settings."""
        return {"longest": self.max_length, **self.encoder.identity}

    def packed(self) -> list[TokenSequence]:
        """The sequences, packed where the settings ask for it."""
        if self.end_id is None:
            return list(self.sequences)
        return pack(self.sequences, end_id=self.end_id, max_length=self.max_length)

    def row_bounds(self) -> tuple[int, int]:
        """Minimum and maximum number of rows, which differ only where models respond; ignores ``max_tokens``."""
        own = [_n_rows(sequence, self.special_ids, self.config) for sequence in self.packed()]
        n_answers = len(self.config.responses)
        fewest = sum(own) + sum(own[index] for index in self.unanswered) * (n_answers - 1)
        return fewest, fewest + len(self.unanswered) * n_answers * self.config.max_new_tokens


def prepare_prompts(family: ModelFamily, prompts: Sequence[Prompt], config: CacheConfig) -> PreparedPrompts:
    """Draw, check and tokenize prompts. Nothing is written and no weights are loaded.

    ``max_prompts`` prompts are drawn at random. Those that are too long are cut, refused or dropped.

    Raises:
        ConfigError: The text rule needs a chat template or BOS token, or packing an EOS token, that the tokenizer lacks.
        InputError: A prompt has no tokens, or is too long and must not be cut.
        ModelError: A model that should respond is not in the family, or a model lacks a token of a prompt.
    """
    for _, model, _ in config.responders():
        _ = family[model]
    max_length, room = _lengths(family, config)
    tokenizer: Any = family.tokenizer
    encoder = PromptEncoder.of(family.tokenizers, config.text)
    end_id, special = _end_id(family, config), special_token_ids(encoder.tokenizer)
    order = np.random.default_rng([config.seed, 0]).permutation(len(prompts))[: config.max_prompts]
    taken, sequences, n_rows, n_dropped = list[Prompt](), list[TokenSequence](), 0, 0
    with progress(len(order), "tokenizing", unit="prompts", inner=True) as advance:
        for _, prompt in in_order(prompts, order.tolist(), all_needed=config.max_tokens is None):
            advance()
            limit = room if prompt.response is None else max_length
            sequence = join(
                prompt,
                encoder.encode(prompt),
                encoder.encode_response(prompt),
                max_length=limit,
                truncate=config.truncate,
                bos_id=tokenizer.bos_token_id,
            )
            if sequence is None:
                n_dropped += 1
                continue
            taken.append(prompt)
            sequences.append(sequence)
            n_sequences = len(config.responses) if config.responses and prompt.response is None else 1
            n_rows += n_sequences * _n_rows(replace(sequence, response_ids=()), special, config)
            # Responses only add rows, so these prompts suffice for max_tokens and no response is generated in vain.
            if config.max_tokens is not None and n_rows >= config.max_tokens:
                break
    if not taken:
        raise InputError(
            f"All {n_dropped:,} prompts are longer than {room} tokens and were dropped; raise max_length, or set "
            "truncate to cut them."
        )
    if n_dropped:
        logger.warning("%d of %d prompts are too long and were dropped", n_dropped, n_dropped + len(taken))
    with activity("checking the token ids"):
        family.check_ids(encoder.tokenizer, taken, encoder.encode_with)
    fingerprint = family.tokenizer_fingerprint
    return PreparedPrompts(
        tuple(taken), tuple(sequences), max_length, special, config, fingerprint, encoder, end_id, n_dropped
    )


def _lengths(family: ModelFamily, config: CacheConfig) -> tuple[int, int]:
    """Maximum length of a sequence, and of a prompt that a model responds to."""
    max_length = min(family.max_context, config.max_length or family.max_context)
    room = max_length - (config.max_new_tokens if config.responses else 0)
    if room < 1:
        raise InputError(
            f"max_new_tokens = {config.max_new_tokens} leaves no room for a prompt within {max_length} tokens; lower it."
        )
    return max_length, room


def _end_id(family: ModelFamily, config: CacheConfig) -> int | None:
    if not config.pack:
        return None
    if family.tokenizer.eos_token_id is None:
        raise ConfigError("pack = true separates prompts by EOS, and the tokenizer has no EOS token; remove pack.")
    return int(str(family.tokenizer.eos_token_id))


def _n_rows(sequence: TokenSequence, special_ids: tuple[int, ...], config: CacheConfig) -> int:
    return len(kept_positions(sequence, special_ids, config.drop_first_positions))
