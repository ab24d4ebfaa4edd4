"""How much a run has to do, as counts: prompts, tokens, samples. Read from files and finished stages, or assumed, which is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from mechprobe.cache.harvest.forward_batches import forward_batches
from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import as_prompts, in_order
from mechprobe.errors import ConfigError, MechprobeError, is_out_of_memory
from mechprobe.evals.answering import prompts_of
from mechprobe.evals.tasks import Task, split_tasks
from mechprobe.records import read_outcomes
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST, read_manifest

_SAMPLED = 512
"""Prompts whose tokens are counted; the rest are taken to be alike."""
_SORTED = 1 << 16
"""Most prompts whose batches are made to count padding."""
_MOST = 10**12
_CHARACTERS = 4
"""Characters of a token where no tokenizer is at hand (ours)."""


@dataclass(frozen=True)
class Assumed:
    """What a plan takes where files cannot be read.

    Attributes:
        prompts: Number of prompts.
        prompt_tokens: Tokens of a prompt.
        tasks, samples: Number of tasks, and of samples of each.
        response_tokens: Tokens of a response; None takes the longest that the settings allow.
    """

    prompts: int = 10_000
    prompt_tokens: int = 256
    tasks: int = 5
    samples: int = 200
    response_tokens: int | None = None

    def within(self, context: int) -> "Assumed":
        """What fits into the context of the models, of the lengths that nobody gave.

        Raises:
            ConfigError: A given length does not fit, or there are more prompts or samples than any file has.
        """
        default = self.prompt_tokens == Assumed.prompt_tokens
        for option, value, most, what in (
            ("prompts", self.prompts, _MOST, "a plan takes"),
            ("samples", self.samples, _MOST, "a plan takes"),
            ("prompt-tokens", 1 if default else self.prompt_tokens, context, "the context of the models is"),
            ("response-tokens", self.response_tokens or 1, context, "the context of the models is"),
        ):
            if value > most:
                raise ConfigError(f"--assume-{option} is {value:,}, but {what} {most:,}; give at most that.")
        return replace(self, prompt_tokens=min(self.prompt_tokens, context))


@dataclass(frozen=True)
class Workload:
    """Counts of a run.

    Attributes:
        prompts, prompt_tokens, longest_prompt: Prompts that are cached, their mean and greatest number of tokens.
        prompt_lengths: Tokens of some of these prompts, in ascending order.
        rows: Tokens that the store holds.
        sequences: Sequences that the store holds.
        tasks: Number of tasks.
        samples, task_tokens, longest_task: Prompts of all tasks, their mean and greatest number of tokens.
        task_lengths: Tokens of the prompts of all tasks, in ascending order.
        selecting, judging: Prompts in the halves that select and that judge.
        located: Prompts that ``localize`` asks.
        gained: Samples of G_t.
        response, longest_response: Mean number of tokens of a response to a task, and the greatest one, as a mean over the models.
        longest_of_task: Greatest number of tokens of a response to the prompts of one task, as a mean over models and tasks.
        longest_stored: Longest response that `cache` generates.
        conditions: Conditions of ``intervene``; None derives them from the settings.
        layer: Depth of the site, in blocks.
        notes: What was assumed, as sentences.
    """

    prompts: int
    prompt_tokens: float
    longest_prompt: int
    prompt_lengths: tuple[int, ...]
    rows: int
    sequences: int
    tasks: int
    samples: int
    task_tokens: float
    longest_task: int
    task_lengths: tuple[int, ...]
    selecting: int
    judging: int
    located: int
    gained: int
    response: float
    longest_response: int
    longest_of_task: int
    longest_stored: int
    conditions: int | None
    layer: int
    notes: tuple[str, ...] = field(default=())

    def read_tokens(self, shard_rows: int, batch_tokens: int) -> float:
        """Tokens that one pass over all sequences of the store reads, with padding and with those that the store leaves out."""
        lengths, stored = self.prompt_lengths, self.rows / max(1, self.sequences)
        n = max(1, min(self.sequences, round(shard_rows / max(1.0, stored)), _SORTED))
        drawn = [lengths[ceil((place + 1) * len(lengths) / n) - 1] for place in range(n)]
        widths = [drawn[batch[-1]] for batch in forward_batches(drawn, batch_tokens) for _ in batch]
        return self.sequences * (fmean(widths) + max(0.0, stored - self.prompt_tokens))

    def padded_task(self, n: int, batch: int) -> float:
        """Mean number of tokens of ``n`` prompts of tasks in batches of similar length, padding included."""
        lengths, n = self.task_lengths, max(1, n)
        if lengths[0] == lengths[-1]:
            return float(lengths[0])
        ends = [min(n, start + batch) for start in range(0, n, batch)]
        widths = [lengths[ceil(end * len(lengths) / n) - 1] for end in ends]
        starts = [0, *ends]
        return sum(width * (end - start) for width, start, end in zip(widths, starts, ends, strict=False)) / n


def count_work(
    config: RunConfig, layout: RunLayout | None, tokenizers: Mapping[str, Any], n_layers: int, assumed: Assumed
) -> Workload:
    """Count the work of a run.

    Args:
        config: The settings.
        layout: The run folder, whose finished stages know counts exactly; None where there is none.
        tokenizers: Tokenizers of the models, by name; without any, a token is counted per four characters.
        n_layers: Blocks of the models.
        assumed: What to take where prompts or tasks cannot be read.

    Raises:
        ConfigError: The text rule does not fit the tokenizers.
        InputError: A file of prompts or tasks is damaged.
    """
    notes: list[str] = (
        [] if tokenizers else [f"No tokenizer is at hand; a token is taken to have {_CHARACTERS} characters."]
    )
    n_prompts, lengths = _prompts(config, _counter(tokenizers, config.text), assumed, notes)
    most = config.tasks.max_new_tokens
    evaluated = _responses(layout)
    response, longest, of_task = evaluated or (
        float(assumed.response_tokens or most),
        *[assumed.response_tokens or most] * 2,
    )
    halves, samples, asked = _tasks(config, _counter(tokenizers, config.text), assumed, notes)
    made = {} if layout is None else _made(layout)
    stored = made.get("cache", {})
    drawn = min(n_prompts, config.cache.max_prompts or n_prompts)
    new = min(assumed.response_tokens or config.cache.max_new_tokens, config.cache.max_new_tokens)
    stored_response = min(evaluated[0], new) if evaluated else float(new)
    n_responses = len(config.cache.responses)
    sequences = drawn * max(1, n_responses)
    rows = round(sequences * (fmean(lengths) + (stored_response if n_responses else 0)))
    limit = config.cache.max_tokens
    if limit is not None and rows > limit:
        rows, sequences = limit, max(1, round(sequences * limit / rows))
    if not stored and n_responses:
        like = ", as the evaluated ones have" if evaluated else ""
        notes.append(f"A stored response is taken to have {stored_response:.4g} tokens on average{like}.")
    if evaluated is None and assumed.response_tokens is None:
        notes.append(f"Responses to tasks are taken to have {most} tokens, the longest that is allowed.")
    gained = made.get("selection", {})
    located = [first.take(config.localize.n_per_task) for first, _ in halves] if halves else []
    selecting = sum(len(first.samples) for first, _ in halves) if halves else samples // 2
    if not gained:
        notes.append(
            "A quarter of the samples that select features are taken to be gained, as far as the settings use so many."
        )
    return Workload(
        prompts=drawn,
        prompt_tokens=fmean(lengths),
        longest_prompt=max(lengths),
        prompt_lengths=tuple(sorted(lengths)),
        rows=stored.get("rows", rows),
        sequences=stored.get("sequences", sequences),
        tasks=len(halves) or assumed.tasks,
        samples=samples,
        task_tokens=fmean(asked),
        longest_task=max(asked),
        task_lengths=tuple(sorted(asked)),
        selecting=selecting,
        judging=samples - selecting,
        located=sum(len(task.samples) for task in located)
        if halves
        else min(selecting, assumed.tasks * (config.localize.n_per_task or selecting)),
        gained=sum(gained.values()) if gained else min(selecting // 4, 5 * config.select.max_samples),
        response=response,
        longest_response=min(longest, most),
        longest_of_task=min(of_task, most),
        longest_stored=min(evaluated[1], new) if evaluated else new,
        conditions=made.get("interventions", {}).get("conditions"),
        layer=_layer(config, layout, n_layers),
        notes=tuple(notes),
    )


Counter = Callable[[Prompt], int]
"""Tokens of a prompt and its response."""


def _counter(tokenizers: Mapping[str, Any], rule: TextConfig) -> Counter:
    if not tokenizers:
        return _by_characters
    encoder = PromptEncoder.of(tokenizers, rule)
    return lambda prompt: len(encoder.encode(prompt)) + len(encoder.encode_response(prompt))


def _by_characters(prompt: Prompt) -> int:
    said = f"{prompt.prompt}{prompt.response or ''}" or " ".join(
        str(m.get("content", "")) for m in prompt.messages or ()
    )
    return max(1, len(said) // _CHARACTERS)


def _prompts(config: RunConfig, count: Counter, assumed: Assumed, notes: list[str]) -> tuple[int, Sequence[int]]:
    """Number of prompts, and tokens of some of them, as far as the settings let them be."""
    limit = config.cache.max_length or (1 << 30)
    try:
        prompts = as_prompts(config.prompt_source())
        some = in_order(prompts, range(min(_SAMPLED, len(prompts))), all_needed=False)
        lengths = [min(count(prompt), limit) for _, prompt in some]
    except (MechprobeError, OSError) as error:
        _require_unreadable(config.prompts.file, error)
        n, length = assumed.prompts, min(assumed.prompt_tokens, limit)
        if config.cache.max_tokens is not None:
            n = max(1, config.cache.max_tokens // length)
        notes.append(f"{n:,} prompts of {length:,} tokens are assumed, because: {error}")
        return n, [length]
    return len(prompts), lengths


def _tasks(
    config: RunConfig, count: Counter, assumed: Assumed, notes: list[str]
) -> tuple[list[tuple[Task, Task]], int, Sequence[int]]:
    """Both halves of every task, the number of all responses that a model is asked for, and tokens of their prompts."""
    try:
        tasks = [task.take(config.evaluate.n_per_task) for task in config.load_tasks()]
        lengths = [count(prompt) for task in tasks for sample in task.samples for prompt in prompts_of(task, sample)]
    except (MechprobeError, OSError) as error:
        _require_unreadable(config.tasks.file, error)
        per_task = config.evaluate.n_per_task or assumed.samples
        notes.append(
            f"{assumed.tasks} tasks of {per_task:,} prompts of {assumed.prompt_tokens:,} tokens are assumed, because: {error}"
        )
        return [], assumed.tasks * per_task, [assumed.prompt_tokens]
    return split_tasks(tasks, seed=config.select.seed), len(lengths) * config.tasks.sampling.n, lengths


def _require_unreadable(file: str, error: Exception) -> None:
    """Raise the error of reading a file where the file exists. A plan may assume a missing file; a damaged one would end the run."""
    if is_out_of_memory(error) or (file and Path(file).expanduser().exists()):
        raise error


def _made(layout: RunLayout) -> dict[str, dict[str, int]]:
    """Counts of finished stages, by folder."""
    folders: dict[str, Path] = {name: getattr(layout, name) for name in ("cache", "selection", "interventions")}
    return {name: read_manifest(folder)["counts"] for name, folder in folders.items() if (folder / MANIFEST).is_file()}


def _responses(layout: RunLayout | None) -> tuple[float, int, int] | None:
    """Tokens of the evaluated responses: mean, the greatest number as a mean over models, and over models and tasks; None without any."""
    if layout is None or not (layout.evals / MANIFEST).is_file():
        return None
    lengths: dict[tuple[str, str], list[int]] = {}
    for record in read_outcomes(layout.evals / "outcomes.jsonl"):
        lengths.setdefault((record.model, record.task), []).append(max(1, record.n_response_tokens))
    if not lengths:
        return None
    of_task = {key: max(each) for key, each in lengths.items()}
    of_model = [
        max(n for (model, _), n in of_task.items() if model == name) for name in {model for model, _ in lengths}
    ]
    return fmean(n for each in lengths.values() for n in each), round(fmean(of_model)), ceil(fmean(of_task.values()))


def _layer(config: RunConfig, layout: RunLayout | None, n_layers: int) -> int:
    """Blocks up to the site; half of them where ``localize`` has yet to choose it."""
    from mechprobe.localization.result import SiteCeilings
    from mechprobe.types import Site

    sites = list(config.cache.sites)
    if not sites and layout is not None and (layout.localize / MANIFEST).is_file():
        sites = [SiteCeilings.load(layout.localize).chosen]
    layers = [Site.parse(site).layer + 1 for site in sites]
    return max(layers) if layers else (n_layers + 1) // 2
