"""The work of a drift stage in parts: windows of forward batches, and what is kept on disk of each until the stage is finished.

Base runs over a window first, and its final hidden states stay in memory; then every other model is loaded once and runs over its
batches of the window. So base runs once for all models, two models are in memory at a time, and logits exist a few
positions at a time. A part is one model in one window. An interrupted run resumes with the first part that is missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.drift.divergence.texts import DriftTexts
from mechprobe.files import write_bytes

PARTS = "parts"
WINDOW_BYTES = 1 << 30
"""Largest size of the final hidden states of base that wait for the other models."""


@dataclass(frozen=True)
class Batch:
    """One forward pass: indices of its sequences in the stream, and the tuned models that run it."""

    sequences: tuple[int, ...]
    readers: tuple[str, ...]

    def inputs(self, texts: DriftTexts, pad_id: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """``(ids, attention_mask)``, padded on the right."""
        return padded([texts.stream.sequences[index].ids for index in self.sequences], pad_id)

    def n_tokens(self, texts: DriftTexts) -> int:
        """Number of tokens, padding not counted."""
        return sum(len(texts.stream.sequences[index].ids) for index in self.sequences)


def windows_of(texts: DriftTexts, batch_tokens: int, hidden_bytes: int) -> list[tuple[Batch, ...]]:
    """The forward batches in order, in windows whose final hidden states have at most `WINDOW_BYTES`.

    The sequences of a batch have the same readers. The result depends on the texts and settings only.

    Args:
        texts: The sequences.
        batch_tokens: Largest number of tokens in a batch.
        hidden_bytes: Size of the final hidden state of one position of base.
    """
    by_readers: dict[tuple[str, ...], list[int]] = {texts.models: []}
    for index in texts.chosen:
        by_readers.setdefault(texts.readers(index), []).append(index)
    batches: list[Batch] = []
    for readers, indices in by_readers.items():
        lengths = [len(texts.stream.sequences[index].ids) for index in indices]
        batches += [
            Batch(tuple(indices[i] for i in batch), readers) for batch in forward_batches(lengths, batch_tokens)
        ]
    room = max(1, WINDOW_BYTES // hidden_bytes)
    windows: list[tuple[Batch, ...]] = []
    current: list[Batch] = []
    size = 0
    for batch in batches:
        own = batch.n_tokens(texts)
        if current and size + own > room:
            windows.append(tuple(current))
            current, size = [], 0
        current.append(batch)
        size += own
    return [*windows, tuple(current)] if current else windows


class PartFiles:
    """Files of parts inside a stage folder."""

    def __init__(self, stage_folder: Path) -> None:
        self.folder = stage_folder / PARTS

    def path(self, window: int | str, model: str) -> Path:
        """File of one model in one window (or of its lens)."""
        return (
            self.folder / f"{window:05d}-{model}.safetensors"
            if isinstance(window, int)
            else self.folder / f"{window}-{model}.json"
        )

    def write(self, window: int, model: str, arrays: dict[str, ndarray]) -> None:
        """Write a part, whole or not at all."""
        from safetensors.numpy import save

        write_bytes(self.path(window, model), save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))

    def read(self, window: int, model: str, *, without: str = "") -> dict[str, ndarray]:
        """The arrays of a part whose names do not begin with ``without``."""
        from safetensors import safe_open

        with safe_open(self.path(window, model), framework="np") as file:
            names = [name for name in file.keys() if not without or not name.startswith(without)]  # noqa: SIM118 - no mapping
            return {name: file.get_tensor(name) for name in names}

    def layers(self, windows: Sequence[int], model: str, n_layers: int) -> Iterator[tuple[int, ndarray]]:
        """Sampled residuals ``[position d_model]`` of one layer at a time, over all windows."""
        from safetensors import safe_open

        for layer in range(n_layers):
            rows: list[Any] = []
            for window in windows:
                with safe_open(self.path(window, model), framework="np") as file:
                    rows.append(file.get_tensor(f"{LAYER}{layer:04d}"))
            yield layer, np.concatenate(rows)


LAYER = "layer."


@dataclass(frozen=True)
class SampledPositions:
    """Positions at which residual streams are compared: rows of the store's stream in sequences that every model reads."""

    places: dict[int, Int[ndarray, " position"]]
    """Sequence → sampled positions in it, rising."""

    @classmethod
    def of(cls, texts: DriftTexts, n: int, seed: int) -> "SampledPositions":
        """Draw ``n`` rows, or all where there are fewer. Special tokens and dropped first positions are no rows."""
        shared = np.zeros(len(texts.stream.sequences), dtype=bool)
        shared[[index for index in texts.chosen if texts.readers(index) == texts.models]] = True
        rows = np.flatnonzero(shared[texts.stream.rows.sample])
        drawn = np.sort(np.random.default_rng([seed, 0]).permutation(rows)[:n])
        sample, position = texts.stream.rows.sample[drawn], texts.stream.rows.position[drawn]
        return cls({int(index): position[sample == index].astype(np.int64) for index in np.unique(sample)})

    def mask(self, batch: Batch, shape: tuple[int, int]) -> Bool[ndarray, "batch pos"]:
        """Where the sampled positions of a batch are."""
        found = np.zeros(shape, dtype=bool)
        for row, index in enumerate(batch.sequences):
            found[row, self.places.get(index, ())] = True
        return found

    def clusters(self, windows: Sequence[Sequence[Batch]]) -> Int[ndarray, " position"]:
        """Sequence of every sampled position, in the order of the parts."""
        order = [index for window in windows for batch in window for index in batch.sequences]
        return np.concatenate(
            [np.full(len(self.places[i]), i) for i in order if i in self.places] or [np.zeros(0, np.int64)]
        )
