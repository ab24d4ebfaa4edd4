"""From prompts to the token stream: which prompts are taken, who answers them, and what is read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.memory import with_less_memory
from mechprobe.cache.harvest.ranks import Ranks
from mechprobe.data.chat import Chat, choose_template
from mechprobe.data.packing import pack
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import in_order
from mechprobe.data.stream import TokenStream, build_stream, kept_positions
from mechprobe.data.tokens import TokenSequence, encode_prompt, encode_response, join, special_token_ids
from mechprobe.errors import ArtifactError, ConfigError, InputError
from mechprobe.files import read_json, sha256_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated, generate
from mechprobe.progress import progress

logger = logging.getLogger(__name__)

CHUNK = 1024
"""Prompts whose responses are written to disk together; what is resumed after an interruption."""

Responses = Mapping[str, Sequence[Generated]]


@dataclass(frozen=True)
class Reading:
    """Prompts as they will be read, before any response is written.

    Attributes:
        prompts: Those taken.
        sequences: Token ids of each, with its own response, within the limit.
        max_length: Longest sequence.
        special_ids: Tokens that make no row.
        config: The settings.
        tokenizer_fingerprint: sha256 of the tokenizer.
        chat: How prompts become conversations; None for plain text.
        end_id: The token between packed documents; None where nothing is packed.
        n_dropped: Prompts that were left out because they are too long.
    """

    prompts: tuple[Prompt, ...]
    sequences: tuple[TokenSequence, ...]
    max_length: int
    special_ids: tuple[int, ...]
    config: CacheConfig
    tokenizer_fingerprint: str
    chat: Chat | None = None
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
    def identity(self) -> dict[str, Any]:
        """What the settings do not say of themselves and the tokens depend on."""
        template = {} if self.chat is None else {"chat_template_sha256": self.chat.template_hash}
        return {"longest": self.max_length, **template}

    def packed(self) -> list[TokenSequence]:
        """The sequences as the models read them: several prompts in each where they are packed."""
        if self.end_id is None:
            return list(self.sequences)
        return pack(self.sequences, end_id=self.end_id, max_length=self.max_length)

    def row_bounds(self) -> tuple[int, int]:
        """The fewest rows and the most; the same unless models are to respond. ``max_tokens`` is not applied."""
        own = [self._n_rows(sequence) for sequence in self.packed()]
        n_answers = len(self.config.responses)
        fewest = sum(own) + sum(own[index] for index in self.unanswered) * (n_answers - 1)
        return fewest, fewest + len(self.unanswered) * n_answers * self.config.max_new_tokens

    def _n_rows(self, sequence: TokenSequence) -> int:
        return len(kept_positions(sequence, self.special_ids, self.config.drop_first_positions))


def prepare(family: ModelFamily, prompts: Sequence[Prompt], config: CacheConfig) -> Reading:
    """Draw, check and tokenize prompts; nothing is written and no weights are read.

    ``max_prompts`` are drawn from all by seed; those of them that are too long are cut, refused or dropped.

    Raises:
        ConfigError: There is no chat template, or no end token to pack with.
        InputError: A prompt has no tokens, or is too long and not to be cut.
        ModelError: A model that shall respond is not of the family.
    """
    for _, model, _ in config.responders():
        _ = family[model]
    max_length = min(family.max_context, config.max_length or family.max_context)
    room = max_length - (config.max_new_tokens if config.responses else 0)
    if room < 1:
        raise InputError(f"max_new_tokens = {config.max_new_tokens} leaves no place in {max_length} tokens; lower it.")
    tokenizer, chat = family.tokenizer, _chat(family, config)
    special, end_id = special_token_ids(tokenizer), _end_id(family, config)
    order = np.random.default_rng([config.seed, 0]).permutation(len(prompts))[: config.max_prompts]
    taken: list[Prompt] = []
    sequences: list[TokenSequence] = []
    n_rows = n_dropped = 0
    for _, prompt in in_order(prompts, order.tolist(), all_needed=config.max_tokens is None):
        sequence = _sequence(tokenizer, prompt, config, chat, max_length if prompt.response is not None else room)
        if sequence is None:
            n_dropped += 1
            continue
        taken.append(prompt)
        sequences.append(sequence)
        n_sequences = len(config.responses) if config.responses and prompt.response is None else 1
        n_rows += n_sequences * _n_prompt_rows(sequence, special, config)
        # Responses only add rows, so these prompts fill max_tokens and no response is written for nothing.
        if config.max_tokens is not None and n_rows >= config.max_tokens:
            break
    if not taken:
        raise InputError(
            f"All {n_dropped:,} prompts are longer than {room} tokens and dropped; raise max_length, or cut."
        )
    if n_dropped:
        logger.warning("%d of %d prompts are dropped: they do not fit", n_dropped, n_dropped + len(taken))
    fingerprint = family.tokenizer_fingerprint
    return Reading(tuple(taken), tuple(sequences), max_length, special, config, fingerprint, chat, end_id, n_dropped)


def _chat(family: ModelFamily, config: CacheConfig) -> Chat | None:
    if not config.chat_template:
        return None
    template = choose_template({model.name: model.tokenizer for model in family}, config.chat_template)
    return Chat(template, config.system_prompt, config.chat_date)


def _end_id(family: ModelFamily, config: CacheConfig) -> int | None:
    if not config.pack:
        return None
    if family.tokenizer.eos_token_id is None:
        raise ConfigError("pack = true, and the tokenizer has no end token to stand between documents; leave pack out.")
    return int(str(family.tokenizer.eos_token_id))


def _sequence(
    tokenizer: Any, prompt: Prompt, config: CacheConfig, chat: Chat | None, max_length: int
) -> TokenSequence | None:
    response = encode_response(tokenizer, prompt.response) if prompt.response is not None else ()
    return join(
        prompt,
        encode_prompt(tokenizer, prompt, chat=chat),
        response,
        max_length=max_length,
        truncate=config.truncate,
        bos_id=tokenizer.bos_token_id,
    )


def _n_prompt_rows(sequence: TokenSequence, special: tuple[int, ...], config: CacheConfig) -> int:
    """Rows that the prompt alone makes."""
    return len(kept_positions(replace(sequence, response_ids=()), special, config.drop_first_positions))


def write_responses(
    family: ModelFamily, reading: Reading, folder: Path, ranks: Ranks | None = None
) -> dict[str, list[Generated]]:
    """Let each named model respond, one model in memory at a time; finished chunks on disk are kept.

    A chunk's seed depends on its place alone, so an interruption changes no response. Of several processes each writes
    its own chunks; what the others have not written yet is missing from the result.
    """
    ranks = ranks or Ranks()
    unanswered, config = reading.unanswered, reading.config
    responses: dict[str, list[Generated]] = {}
    if not unanswered:
        return responses
    with progress(
        len(unanswered) * len(config.responses), "responses", unit="prompts", quiet=not ranks.is_first
    ) as advance:
        for place, (source, model, temperature) in enumerate(config.responders()):
            chunks = [unanswered[start : start + CHUNK] for start in range(0, len(unanswered), CHUNK)]
            responses[source] = []
            for number, chunk in enumerate(chunks):
                path = folder / "responses" / source / f"chunk_{number:05d}.json"
                found = _read_chunk(path, len(chunk))
                if found is None and ranks.owns(place * len(chunks) + number):
                    found = _respond(family, reading, chunk, (source, model, temperature, number))
                    write_json(path, [asdict(item) for item in found])
                responses[source] += found or []
                advance(len(chunk), model=model)
            if config.models_in_memory == "one":
                family[model].release()
    return responses


def all_responded(reading: Reading, responses: Responses) -> bool:
    """Whether every prompt that models respond to has its responses."""
    return all(len(found) == len(reading.unanswered) for found in responses.values())


def _respond(
    family: ModelFamily, reading: Reading, chunk: Sequence[int], who: tuple[str, str, float, int]
) -> list[Generated]:
    source, model, temperature, number = who
    seed = int.from_bytes(bytes.fromhex(sha256_bytes(f"{reading.config.seed} {source} {number}".encode())[:8]), "big")

    def respond(batch_size: int) -> list[Generated]:
        return generate(
            family[model].hf,
            family.tokenizer,
            [reading.sequences[index].prompt_ids for index in chunk],
            max_new_tokens=reading.config.max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
        )

    # The responses are written down and read by every model, so a smaller batch changes what is read, never alignment.
    found, _ = with_less_memory(
        respond, reading.config.generation_batch, smallest=1, name="generation_batch", where=f"Responses of {source}"
    )
    return found


def _read_chunk(path: Path, n_prompts: int) -> list[Generated] | None:
    try:
        items = read_json(path)
        found = [Generated(item["text"], tuple(item["token_ids"])) for item in items]
    except (ArtifactError, KeyError, TypeError):
        return None
    return found if len(found) == n_prompts else None


def response_files(folder: Path) -> list[str]:
    """What `write_responses` wrote, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "responses").glob("*/chunk_*.json"))


def stream_of(reading: Reading, responses: Responses) -> TokenStream:
    """The token stream of the prompts with their own responses, or with each model's."""
    config, sequences = reading.config, list[TokenSequence]()
    place = {index: number for number, index in enumerate(reading.unanswered)}
    for index, own in enumerate(reading.packed()):
        if index in place:
            for source, generated in responses.items():
                sequences.append(_answered(own, source, tuple(generated[place[index]].token_ids), reading.max_length))
        else:
            sequences.append(own)
    n_cut = sum(sequence.n_cut > 0 for sequence in sequences)
    if n_cut:
        logger.warning("%d of %d sequences are cut at %d tokens", n_cut, len(sequences), reading.max_length)
    return build_stream(
        sequences,
        special_ids=reading.special_ids,
        tokenizer_fingerprint=reading.tokenizer_fingerprint,
        seed=config.seed,
        max_tokens=config.max_tokens,
        held_out_frac=config.held_out_frac,
        shard_rows=config.shard_rows,
        drop_first_positions=config.drop_first_positions,
    )


def _answered(own: TokenSequence, source: str, answer: tuple[int, ...], max_length: int) -> TokenSequence:
    kept = answer[: max_length - len(own.prompt_ids)]
    n_cut = own.n_cut + len(answer) - len(kept)
    return replace(own, id=f"{own.id}#{source}", source=source, response_ids=kept, n_cut=n_cut)
