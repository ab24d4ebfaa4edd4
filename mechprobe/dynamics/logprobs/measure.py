"""Log-probability, entropy and rank of every response token under one model, from its own forward call.

The prediction of a response token stands at the position before it. Sequences are padded on the right, where no earlier token
can attend. The normalization runs over all logits in float64, as a plain forward call and an inference server have it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.dynamics.logprobs.traces import Trace
from mechprobe.errors import ModelError
from mechprobe.files import write_bytes
from mechprobe.models.generation import not_finite
from mechprobe.models.head import ModelHead
from mechprobe.models.load import LanguageModel
from mechprobe.models.next_token import TokenNumbers, chunks, token_numbers
from mechprobe.ranks import in_turns

TOKENS = "tokens"
"""Folder of the per-token values inside the stage folder."""


def token_starts(traces: Sequence[Trace]) -> ndarray:
    """Place of the first response token of each trace among all response tokens, followed by their number."""
    return np.concatenate([[0], np.cumsum([len(trace.response_ids) for trace in traces])]).astype(np.int64)


@torch.no_grad()
def model_tokens(
    model: LanguageModel,
    traces: Sequence[Trace],
    *,
    batch_tokens: int = 4096,
    temperature: float = 1.0,
    advance: Callable[[int], object] | None = None,
) -> dict[str, ndarray]:
    """``log_prob``, ``entropy`` (float64, nats) and ``rank`` of every response token of all traces, one trace after another.

    Args:
        model: The model.
        traces: The traces.
        batch_tokens: Largest number of tokens in a forward pass, padding included.
        temperature: Temperature of the distribution.
        advance: Called with the number of tokens of each batch.

    Raises:
        ModelError: A logit is not finite, or the architecture is not supported.
    """
    head, start = ModelHead(model), token_starts(traces)
    found = {name: np.empty(start[-1]) for name in ("log_prob", "entropy")} | {"rank": np.empty(start[-1], np.int64)}
    batches = list(forward_batches([len(trace.ids) for trace in traces], batch_tokens))

    def read(batch: Sequence[int]) -> dict[str, ndarray]:
        ids, mask = padded([traces[index].ids for index in batch], model.pad_id)
        hidden, _ = head.hidden(ids, mask)
        row, position, target, _ = _picked(traces, batch, start)
        chosen = hidden[row.to(hidden.device), position.to(hidden.device)]
        numbers = _numbers(head, chosen, target, temperature)
        wrong = np.flatnonzero(~np.isfinite(numbers["log_prob"]))
        if len(wrong):
            trace = traces[batch[int(row[wrong[0]])]]
            raise ModelError(f"{str(not_finite(model.name, model.hf.dtype)).rstrip('.')} (trace {trace.id!r}).")
        return numbers

    for batch, numbers in zip(batches, in_turns(read, batches), strict=True):
        place = _picked(traces, batch, start)[-1]
        for name, values in numbers.items():
            found[name][place] = values
        if advance is not None:
            advance(sum(len(traces[index].ids) for index in batch))
    return found


def _picked(traces: Sequence[Trace], batch: Sequence[int], start: ndarray) -> tuple[Tensor, Tensor, Tensor, ndarray]:
    """Row and position of every prediction of a batch, its token, and its place among all response tokens."""
    counts = np.array([len(traces[index].response_ids) for index in batch])
    row = np.repeat(np.arange(len(batch)), counts)
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.repeat([len(traces[index].prompt_ids) - 1 for index in batch], counts) + inside
    target = np.concatenate([np.asarray(traces[index].response_ids, dtype=np.int64) for index in batch])
    return torch.from_numpy(row), torch.from_numpy(position), torch.from_numpy(target), start[batch][row] + inside


def _numbers(head: ModelHead, hidden: Tensor, target: Tensor, temperature: float) -> dict[str, ndarray]:
    """The numbers of all positions; the logits of a few exist at a time."""
    parts: list[TokenNumbers] = []
    width = head.model.n_rows
    for part in chunks(len(target), width):
        logits = head.logits(hidden[part])
        parts.append(token_numbers(logits, target[part].to(logits.device), temperature=temperature))
    names = TokenNumbers._fields
    return {name: torch.cat([getattr(part, name).cpu() for part in parts]).numpy() for name in names}


class TokenFiles:
    """Per-token values inside a stage folder, one file per model: they are also what an interrupted stage resumes with."""

    def __init__(self, stage_folder: Path) -> None:
        self.folder = stage_folder / TOKENS

    def name(self, model: str) -> str:
        """Path of a model's file inside the stage folder."""
        return f"{TOKENS}/{model}.safetensors"

    def path(self, model: str) -> Path:
        """The file of a model."""
        return self.folder / f"{model}.safetensors"

    def write(self, model: str, arrays: dict[str, ndarray]) -> None:
        """Write the values of a model, whole or not at all."""
        from safetensors.numpy import save

        write_bytes(self.path(model), save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))

    def read(self, model: str) -> dict[str, ndarray]:
        """The values of a model."""
        from safetensors.numpy import load_file

        return load_file(self.path(model))


def sampler_checks(
    model: LanguageModel, traces: Sequence[Trace], *, batch_tokens: int
) -> Iterator[tuple[float, int, float, float]]:
    """``(temperature, tokens, largest difference, mean difference)`` of the sampler's log-probabilities and the model's own.

    The model is compared at the temperature at which each of its traces was sampled.
    """
    own = [trace for trace in traces if trace.source == model.name and trace.sampled]
    for temperature in sorted({trace.temperature for trace in own}):
        same = [trace for trace in own if trace.temperature == temperature]
        log_prob = model_tokens(model, same, batch_tokens=batch_tokens, temperature=temperature)["log_prob"]
        apart = log_prob - np.concatenate([trace.sampled for trace in same])
        apart = apart[np.isfinite(apart)]
        if len(apart):
            yield temperature, len(apart), float(np.abs(apart).max()), float(apart.mean())
