"""Responses for on-policy SFT: the base samples several to each prompt, the scorer keeps the right ones, and one is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.errors import ModelError
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.files import read_json, write_json
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain.config import SftConfig
from mechprobe.posttrain.examples import Example
from mechprobe.posttrain.reward import reward
from mechprobe.progress import progress
from mechprobe.records import write_jsonl

RESPONSES_FILE = "responses.jsonl"
_CHUNK = 64
"""Prompts that are sampled and saved together. Batches depend on this number, so a resumed sampling gives the same bytes."""


@dataclass(frozen=True)
class Drawn:
    """What the base wrote for one prompt.

    Attributes:
        ids: Token ids of the response that was drawn, with its end token; None if none was right.
        text: Its text.
        n_right: Number of right samples.
    """

    ids: tuple[int, ...] | None
    text: str
    n_right: int


def draw_responses(
    base: LanguageModel,
    examples: Sequence[Example],
    answers: Sequence[str],
    judge: Scorer,
    config: SftConfig,
    folder: Path,
) -> list[Drawn]:
    """Sample, judge and draw one right response to each prompt; finished parts in ``folder`` are read again.

    Samples that were cut at the limit never count as right. The draw depends on the seed and the id of the prompt alone.

    Raises:
        ModelError: No prompt has a right sample.
    """
    assert config.on_policy is not None
    found: list[Drawn] = []
    with progress(len(examples), "sampling responses", unit="prompts") as advance:
        for number, start in enumerate(range(0, len(examples), _CHUNK)):
            place, part = folder / f"samples-{number:06d}.json", slice(start, start + _CHUNK)
            count = advance.found
            if not place.is_file():
                drawn = _sample(base, examples[part], answers[part], judge, config)
                write_json(place, [[item.ids, item.text, item.n_right] for item in drawn])
                count = advance
            rows = read_json(place)
            found += [Drawn(None if ids is None else tuple(ids), text, n) for ids, text, n in rows]
            count(len(examples[part]), with_right=sum(item.ids is not None for item in found))
    base.release("hf")
    if not any(item.ids for item in found):
        _remove_parts(folder)
        raise ModelError(
            f"None of the {config.on_policy.n} samples of any prompt is right, so on-policy SFT has no response; raise "
            "on_policy.n or max_new_tokens, or check the scorer."
        )
    return found


def _sample(
    base: LanguageModel, examples: Sequence[Example], answers: Sequence[str], judge: Scorer, config: SftConfig
) -> Iterator[Drawn]:
    assert config.on_policy is not None
    n = config.on_policy.n
    responses = generate(
        base,
        base.tokenizer,
        [item.prompt_ids for item in examples],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        n=n,
    )
    for place, (item, answer) in enumerate(zip(examples, answers, strict=True)):
        own = responses[place * n : (place + 1) * n]
        right = [r for r in own if r.finish == "stop" and reward(judge, r.text, answer) >= 1]
        if right:
            rng = np.random.default_rng([config.seed, *item.prompt.id.encode()])
            chosen = right[int(rng.integers(len(right)))]
            yield Drawn(chosen.written, chosen.text, len(right))
        else:
            yield Drawn(None, "", 0)


def write_responses(examples: Sequence[Example], drawn: Sequence[Drawn], folder: Path) -> None:
    """Write the drawn responses as a prompts file, and remove the parts of the sampling."""
    lines: list[dict[str, Any]] = []
    for item, found in zip(examples, drawn, strict=True):
        if found.ids is not None:
            prompt = item.prompt
            said: dict[str, Any] = (
                {"prompt": prompt.prompt}
                if prompt.messages is None
                else {"messages": [dict(message) for message in prompt.messages]}
            )
            lines.append(
                {"id": prompt.id, **said, "answer": item.answer, "response": found.text, "n_right": found.n_right}
            )
    write_jsonl(folder / RESPONSES_FILE, lines)
    _remove_parts(folder)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("samples-*.json"):
        part.unlink(missing_ok=True)
