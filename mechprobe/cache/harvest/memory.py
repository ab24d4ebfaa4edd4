"""Going on with smaller batches when a device runs out of memory."""

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
    """``work(size)``, and where memory runs out the same from the beginning with half the size, and so on.

    Args:
        work: What is to be done, as a function of the batch size; it must leave nothing half-done behind.
        size: To begin with.
        smallest: A size at which a batch cannot become smaller.
        name: What the size is called in the settings.
        where: What is being done, for the log.

    Returns:
        ``(result, size)``: the size that it was done with.

    Raises:
        StoreError: Memory runs out at the smallest size.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Outside of the except block, where the error's frames no longer hold the tensors of the failed pass.
        _free()
        if size <= smallest:
            raise StoreError(
                f"{where}: the memory does not hold one sequence ({full}); lower max_length, or spread the model "
                "with device_map."
            )
        size = max(smallest, size // 2)
        logger.warning("%s: out of memory; going on with %s = %d.", where, name, size)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
