"""Sending batches to a device while it computes with earlier ones."""

from collections.abc import Callable

import torch
from torch import Tensor


class Sender:
    """Sends rows as they are stored and converts them where they arrive, which moves half of the bytes of float32 or less.

    On a GPU the copy starts from page-locked memory and runs in a CUDA stream of its own. Other devices get the converted
    rows from the host.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor on the host that `send` takes."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._stream is not None)

    def send(self, rows: Tensor, convert: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """Begin to send rows; the returned function gives the converted rows to the thread that calls it, without a wait."""
        if self._stream is None:
            converted = convert(rows)
            return lambda: converted
        with torch.cuda.stream(self._stream):
            batch = convert(rows.to(self._device, non_blocking=True))
            sent = torch.cuda.Event()
            sent.record(self._stream)

        def receive() -> Tensor:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(sent)
            batch.record_stream(current)  # its memory is reused only after the work of this stream
            return batch

        return receive
