"""Streams of batches for training: checked, counted, read ahead, and resumed at their position."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError


@runtime_checkable
class PositionedBatches(Protocol):
    """A stream whose position can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches given so far."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Move to a position."""
        ...


class BatchStream:
    """An iterable of raw activations with a position.

    A stream with ``state_dict`` and ``load_state_dict`` is resumed by them. Any other stream must give the same batches
    again, and a resume skips those that were consumed before.
    """

    def __init__(self, batches: Iterable[Tensor], crosscoder: Crosscoder, batch_size: int) -> None:
        self._batches = batches
        self._crosscoder = crosscoder
        self._batch_size = batch_size
        self._iterator = None
        self._ahead: deque[tuple[Tensor, dict[str, Any] | None]] = deque()
        self._position: dict[str, Any] | None = None
        self.n_consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that `next` gave, not counting batches read ahead."""
        return {"n_consumed": self.n_consumed, "source": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a position; only allowed before the first batch.

        Raises:
            SaeTrainingError: The stream cannot be moved to this position.
        """
        if state["source"] is not None:
            if not isinstance(self._batches, PositionedBatches):
                raise SaeTrainingError(
                    "the checkpoint has a stream position, but the batches have no load_state_dict; "
                    "resume with the same kind of stream."
                )
            self._batches.load_state_dict(state["source"])
            self._position = state["source"]
            self.n_consumed = state["n_consumed"]
            return
        for _ in range(state["n_consumed"]):
            if self.next() is None:
                raise SaeTrainingError(
                    f"the stream ended after {self.n_consumed} batches, but the checkpoint was made after "
                    f"{state['n_consumed']}; resume with the same stream."
                )

    def read_ahead(self, n_batches: int) -> list[Tensor]:
        """The next ``n_batches`` batches, which `next` will give again."""
        while len(self._ahead) < n_batches and (drawn := self._draw()) is not None:
            self._ahead.append(drawn)
        return [batch for batch, _ in self._ahead]

    def next(self) -> Tensor | None:
        """The next batch of raw activations ``[batch d_all]``, or None at the end of the stream."""
        drawn = self._ahead.popleft() if self._ahead else self._draw()
        if drawn is None:
            return None
        batch, self._position = drawn
        self.n_consumed += 1
        return batch

    def _draw(self) -> tuple[Tensor, dict[str, Any] | None] | None:
        if self._iterator is None:
            self._iterator = iter(self._batches)
        batch = next(self._iterator, None)
        if batch is None:
            return None
        number = self.n_consumed + len(self._ahead)
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            kind = f"a tensor of {batch.dtype}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            raise SaeTrainingError(f"batch {number} is {kind}; give floating-point tensors.")
        if not 1 <= batch.shape[0] <= self._batch_size:
            raise SaeTrainingError(
                f"batch {number} has {batch.shape[0]} tokens, but batch_size is {self._batch_size}; "
                "make the stream and TrainConfig agree."
            )
        flat = self._crosscoder.flatten(sent(batch, self._crosscoder.device))
        position = self._batches.state_dict() if isinstance(self._batches, PositionedBatches) else None
        return flat, position


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values on a device. A GPU copies them from page-locked memory, because the host would wait for other copies."""
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def batch_digest(batch: Tensor) -> Tensor:
    """A 64-bit hash of the first and last rows of a batch, on its device."""
    rows = torch.stack((batch[0], batch[-1])).float().contiguous().view(torch.int32).long().flatten()
    weights = torch.arange(1, rows.numel() + 1, device=rows.device) * 2_654_435_761
    return (rows * weights).sum()
