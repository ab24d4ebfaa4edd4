"""Retry with smaller batches when a device runs out of memory."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from mechprobe.errors import StoreError
from mechprobe.models.devices import is_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")


def with_less_memory(work: Callable[[int], T], size: int, *, smallest: int, name: str, where: str) -> tuple[T, int]:
    """Call ``work(size)``; when memory runs out, start again with half the size.

    Args:
        work: Function of the batch size. A failed call must leave no state behind.
        size: First batch size.
        smallest: Batch size below which a batch cannot become smaller.
        name: Name of the batch size in the settings.
        where: What is being computed, for messages.

    Returns:
        ``(result, size)``, with the batch size that succeeded.

    Raises:
        StoreError: Memory runs out at the smallest size.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Outside the except block, the error's frames no longer hold the tensors of the failed pass.
        _free()
        if size <= smallest:
            raise StoreError(
                f"{where}: one sequence does not fit in memory ({reason}); lower max_length, or spread the model with "
                "device_map."
            )
        size = max(smallest, size // 2)
        logger.warning("%s: out of memory; retrying with %s = %d.", where, name, size)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
