"""From prompts to the token stream: which prompts are taken, who answers them, and what is read."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mechprobe.activations.config import CacheConfig
from mechprobe.activations.memory import with_less_memory
from mechprobe.activations.ranks import Ranks
from mechprobe.artifacts import read_json, sha256_bytes, write_json
from mechprobe.data.prompts import Prompt
from mechprobe.data.stream import TokenStream, build_stream, kept_positions
from mechprobe.data.tokens import TokenSequence, encode_prompt, encode_response, join
from mechprobe.errors import ArtifactError, InputError
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
        prompt_ids: Their token ids.
        max_length: Longest sequence.
        special_ids: Tokens that make no row.
        config: The settings.
        tokenizer_fingerprint: sha256 of the tokenizer.
    """

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    max_length: int
    special_ids: tuple[int, ...]
    config: CacheConfig
    tokenizer_fingerprint: str

    @property
    def unanswered(self) -> list[int]:
        """Indices of the prompts that models respond to."""
        if not self.config.responses:
            return []
        return [index for index, prompt in enumerate(self.prompts) if prompt.response is None]

    def n_prompt_rows(self, index: int) -> int:
        """Rows that the prompt alone makes."""
        return _n_rows(self.prompt_ids[index], self.special_ids, self.config)


def prepare(family: ModelFamily, prompts: Sequence[Prompt], config: CacheConfig) -> Reading:
    """Check and tokenize prompts; nothing is written and no weights are read.

    Raises:
        InputError: A prompt has no tokens or is too long for the context.
        ModelError: A model that shall respond is not of the family.
    """
    for _, model, _ in config.responders():
        _ = family[model]
    max_length = min(family.max_context, config.max_length or family.max_context)
    room = max_length - (config.max_new_tokens if config.responses else 0)
    if room < 1:
        raise InputError(f"max_new_tokens = {config.max_new_tokens} leaves no place in {max_length} tokens; lower it.")
    tokenizer = family.tokenizer
    special = tuple(sorted(int(token) for token in tokenizer.all_special_ids))
    order = np.random.default_rng([config.seed, 0]).permutation(len(prompts))[: config.max_prompts]
    taken: list[Prompt] = []
    ids: list[tuple[int, ...]] = []
    checked = [
        encode_prompt(tokenizer, prompt, max_length=max_length if prompt.response is not None else room)
        for prompt in prompts
    ]
    n_rows = 0
    for index in order:
        prompt, prompt_ids = prompts[index], checked[index]
        taken.append(prompt)
        ids.append(prompt_ids)
        n_sequences = len(config.responses) if config.responses and prompt.response is None else 1
        n_rows += n_sequences * _n_rows(prompt_ids, special, config)
        # Responses only add rows, so these prompts fill max_tokens and no response is written for nothing.
        if config.max_tokens is not None and n_rows >= config.max_tokens:
            break
    return Reading(tuple(taken), tuple(ids), max_length, special, config, family.tokenizer_fingerprint)


def _n_rows(ids: tuple[int, ...], special: tuple[int, ...], config: CacheConfig) -> int:
    return len(kept_positions(TokenSequence("", "", None, None, ids, ()), special, config.drop_first_positions))


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
            [reading.prompts[index].prompt for index in chunk],
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


def stream_of(family: ModelFamily, reading: Reading, responses: Responses) -> TokenStream:
    """The token stream of the prompts with their own responses, or with each model's."""
    config, sequences = reading.config, list[TokenSequence]()
    place = {index: number for number, index in enumerate(reading.unanswered)}
    for index, (prompt, ids) in enumerate(zip(reading.prompts, reading.prompt_ids, strict=True)):
        if index in place:
            for source, generated in responses.items():
                answer = tuple(generated[place[index]].token_ids)
                sequences.append(join(prompt, ids, answer, source=source, max_length=reading.max_length))
        else:
            answer = encode_response(family.tokenizer, prompt.response) if prompt.response is not None else ()
            sequences.append(join(prompt, ids, answer, max_length=reading.max_length))
    n_cut = sum(sequence.n_cut > 0 for sequence in sequences)
    if n_cut:
        logger.warning("%d of %d responses are cut at %d tokens", n_cut, len(sequences), reading.max_length)
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
