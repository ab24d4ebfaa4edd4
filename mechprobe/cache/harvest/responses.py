"""Responses of the models to the prompts, and the token stream that prompts and responses make."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.prompts import PreparedPrompts, Questions
from mechprobe.cache.store.disk import reading_hdf5, write_hdf5
from mechprobe.data.stream import TokenStream, build_stream
from mechprobe.data.tokens import TokenSequence
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, sha256_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated, generate
from mechprobe.progress import progress
from mechprobe.ranks import Ranks

logger = logging.getLogger(__name__)

CHUNK = 1024
"""Number of prompts whose responses are written together; an interrupted run resumes at the next chunk."""

Responses = Mapping[str, Sequence[Generated]]
"""Source (``model@temperature``) to its responses, in the order of `Questions`."""

_QUESTIONS = Path("responses") / "prompts.h5"
"""Token ids of the prompts that models respond to, for processes that did not tokenize them; removed in the end."""


def write_responses(
    family: ModelFamily, questions: Questions, folder: Path, ranks: Ranks | None = None
) -> dict[str, list[Generated]]:
    """Generate the responses of each model, one model in memory at a time; finished chunks on disk are reused.

    The seed of a chunk depends only on its source and number, so an interruption changes no response. Each of several
    processes writes its own chunks; chunks that other processes have not yet written are missing from the result.
    """
    ranks = ranks or Ranks()
    config = questions.config
    responses: dict[str, list[Generated]] = {}
    if not questions:
        return responses
    chunks = [range(len(questions))[start : start + CHUNK] for start in range(0, len(questions), CHUNK)]
    total = len(questions) * len(config.responses)
    with progress(total, "responses", unit="prompts", quiet=not ranks.is_first) as advance:
        for place, (source, model, temperature) in enumerate(config.responders()):
            responses[source] = []
            for number, chunk in enumerate(chunks):
                path = folder / "responses" / source / f"chunk_{number:05d}.json"
                found = _read_chunk(path, len(chunk))
                count = advance.found
                if found is None and ranks.owns(place * len(chunks) + number):
                    found, count = _respond(family, questions, chunk, (source, model, temperature, number)), advance
                    write_json(path, [asdict(item) for item in found])
                responses[source] += found or []
                count(len(chunk), model=model)
            if config.models_in_memory == "one":
                family[model].release()
    return responses


def all_responded(questions: Questions, responses: Responses) -> bool:
    """Whether every prompt that models respond to has its responses."""
    return all(len(found) == len(questions) for found in responses.values())


def write_questions(folder: Path, questions: Questions) -> None:
    """Write the prompts for `read_questions` in other processes."""
    ids = [np.asarray(row, dtype=np.int32) for row in questions.prompt_ids]
    (folder / _QUESTIONS).parent.mkdir(parents=True, exist_ok=True)
    write_hdf5(folder / _QUESTIONS, {"ids": np.concatenate(ids), "stop": np.cumsum([len(row) for row in ids])}, {})


def read_questions(folder: Path, config: CacheConfig) -> Questions | None:
    """The prompts that another process wrote; None as long as they are not visible."""
    if not (folder / _QUESTIONS).is_file():
        return None
    with reading_hdf5(folder / _QUESTIONS) as file:
        rows = np.split(np.asarray(file["ids"]), np.asarray(file["stop"])[:-1])
    return Questions(config, [tuple(row.tolist()) for row in rows])


def remove_questions(folder: Path) -> None:
    """Remove the file of `write_questions`."""
    (folder / _QUESTIONS).unlink(missing_ok=True)


def _respond(
    family: ModelFamily, questions: Questions, chunk: Sequence[int], responder: tuple[str, str, float, int]
) -> list[Generated]:
    """Responses to one chunk; ``responder`` is (source, model, temperature, chunk number)."""
    source, model, temperature, number = responder
    seed = int.from_bytes(bytes.fromhex(sha256_bytes(f"{questions.config.seed} {source} {number}".encode())[:8]), "big")

    return generate(
        family[model],
        family.tokenizer,
        [questions.prompt_ids[index] for index in chunk],
        max_new_tokens=questions.config.max_new_tokens,
        batch_size=questions.config.generation_batch,
        temperature=temperature,
        seed=seed,
    )


def _read_chunk(path: Path, n_prompts: int) -> list[Generated] | None:
    try:
        found = [Generated(item["text"], tuple(item["token_ids"]), item["finish"]) for item in read_json(path)]
    except (ArtifactError, KeyError, TypeError):
        return None
    return found if len(found) == n_prompts else None


def response_files(folder: Path) -> list[str]:
    """Files of `write_responses`, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "responses").glob("*/chunk_*.json"))


def stream_of(prepared: PreparedPrompts, responses: Responses) -> TokenStream:
    """The token stream of the prompts, each with its own response or with the response of each model."""
    config, sequences = prepared.config, list[TokenSequence]()
    place = {index: number for number, index in enumerate(prepared.unanswered)}
    for index, own in enumerate(prepared.packed()):
        if index in place:
            for source, generated in responses.items():
                answer = tuple(generated[place[index]].token_ids)
                kept = answer[: prepared.max_length - len(own.prompt_ids)]
                n_cut = own.n_cut + len(answer) - len(kept)
                name = f"{own.id}#{source}"
                sequences.append(replace(own, id=name, source=source, response_ids=kept, n_cut=n_cut))
        else:
            sequences.append(own)
    n_cut = sum(sequence.n_cut > 0 for sequence in sequences)
    if n_cut:
        logger.warning("%d of %d sequences were cut at %d tokens", n_cut, len(sequences), prepared.max_length)
    return build_stream(
        sequences,
        special_ids=prepared.special_ids,
        tokenizer_fingerprint=prepared.tokenizer_fingerprint,
        seed=config.seed,
        max_tokens=config.max_tokens,
        held_out_frac=config.held_out_frac,
        shard_rows=config.shard_rows,
        drop_first_positions=config.drop_first_positions,
    )
