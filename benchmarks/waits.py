"""Counts the operations by which the host waits for a device: on a GPU those that torch reports, on a CPU those that would.

On a CPU no operation waits, so the count is of operations whose result the host reads, or whose size depends on values.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor that return its values, or a result whose size depends on them."""
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "is_nonzero", "equal")
"""The same among torch's operations; a method that calls one of them counts once."""


class Waits(TorchDispatchMode):
    """The waits of a block, by name.

    Attributes:
        seen: Name of each wait, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._inside = 0

    def counting(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A method of Tensor that counts itself, and hides the operations that it calls."""
        hidden = self.hiding(original)

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._inside:
                self.seen.append(name)
            return hidden(tensor, *args, **kwargs)

        return counted

    def hiding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A function inside which nothing is counted."""

        def hidden(*args: Any, **kwargs: Any) -> Any:
            self._inside += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._inside -= 1

        return hidden

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation if it would wait."""
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put_", "index_put") and any(
            isinstance(place, Tensor) and place.dtype == torch.bool for place in args[1]
        )
        if not self._inside and (name in OPERATIONS or by_mask):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def count_waits(device: str | torch.device) -> Iterator[Waits]:
    """Count the waits inside the block, on the device that the tensors are on."""
    waits = Waits()
    if torch.device(device).type == "cuda":
        with _reported_by_cuda(waits):
            yield waits
        return
    with ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(patch.object(Tensor, name, waits.counting(name, getattr(Tensor, name))))
        interpreter: Any = sys.modules.get("triton.runtime.interpreter")
        if interpreter is not None:  # it stands for a launch on the device, and copies what it computes with
            launch = interpreter.GridExecutor.__call__
            stack.enter_context(patch.object(interpreter.GridExecutor, "__call__", waits.hiding(launch)))
        stack.enter_context(waits)
        yield waits


@contextmanager
def _reported_by_cuda(waits: Waits) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits.seen += [f"{item.filename}:{item.lineno}" for item in caught if "called a synchronizing" in str(item.message)]
