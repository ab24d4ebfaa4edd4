"""Smaller batches when a device, or this machine, runs out of memory.

Work on a batch is work on its rows, which do not depend on each other. `in_parts` gives all rows at once, and half as many after
memory has run out. Rows keep the width that the whole batch is padded to, so matrix products and attention have the same shapes
for each row, and the results keep their bits wherever a kernel does not look at the number of rows. On CPUs that holds from four rows
of one token on.
"""

import ctypes
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

from mechprobe.errors import OutOfMemoryError, first_line, lack_of_memory
from mechprobe.progress import tell_once

T = TypeVar("T")

_most: dict[str, int] = {}
"""Rows that are taken at a time since memory has run out, by the name of the work."""


def in_parts(
    work: Callable[[slice], T], n: int, *, what: str, most: int | None = None, unit: str = "sequences"
) -> list[T]:
    """Results of ``work`` on consecutive parts of ``n`` rows, in order: one part, or parts of ``most``, as long as memory suffices.

    When memory runs out, the part is done again in halves. Later calls of the same work begin with parts that fitted.

    Args:
        work: Called with a range of rows. What it gives for a row must not depend on the other rows of the range, and a failed call
            must leave no state behind.
        n: Number of rows.
        what: Name of the work, for messages.
        most: Rows that are taken at a time at most; None takes all.
        unit: Name of the rows in messages, in the plural.

    Raises:
        OutOfMemoryError: Memory runs out with a single row.
    """
    found: list[T] = []
    start, failed = 0, False
    while start < n:
        size = next(even_ranges(n - start, max(1, min(n if most is None else most, _most.get(what, n))))).stop
        reason = ""
        try:
            found.append(work(slice(start, start + size)))
        except OutOfMemoryError:  # of work inside, which has already taken single rows
            raise
        except Exception as error:
            lack = lack_of_memory(error)
            if lack is None:
                raise
            reason = first_line(lack)
        if not reason:
            start += size
            if failed:
                tell_once(
                    f"{what}: memory ran out, so {_most[what]} {unit} are taken at a time; results stay the same.",
                    of_each_rank=True,
                )
            failed = False
            continue
        free_memory()  # outside the except block, the error's frames no longer hold the tensors of the failed pass
        if size == 1:
            raise OutOfMemoryError(
                f"{what}: one of the {unit} alone does not fit in memory ({reason}); shorten it, free memory, or give a device_map."
            )
        _most[what], failed = size // 2, True
    return found


@contextmanager
def needing_memory(what: str, fix: str) -> Iterator[None]:
    """Name work whose batches cannot be halved, and the settings that make it smaller, where memory runs out inside.

    Args:
        what: Name of the work.
        fix: What to do, in the imperative and without a full stop.

    Raises:
        OutOfMemoryError: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        lack = lack_of_memory(error)
        if lack is None or isinstance(error, OutOfMemoryError):
            raise
        raise OutOfMemoryError(f"{what}: memory ran out ({first_line(lack)}); {fix}.") from error


def even_ranges(n: int, most: int) -> Iterator[slice]:
    """The fewest ranges of at most ``most`` of ``n`` rows; their sizes differ by one at most, the largest first.

    Products of very few rows have other bits, so no range is much smaller than the others.
    """
    parts = math.ceil(n / most)
    borders = [math.ceil(n * part / parts) for part in range(parts + 1)] if parts else []
    return (slice(start, stop) for start, stop in pairwise(borders))


def forget_limits() -> None:
    """Begin a new command, which takes whole batches again."""
    _most.clear()


def free_memory() -> None:
    """Return memory that no tensor uses to the system and the GPU.

    Threads load the weights of a model. glibc keeps what they free for threads to come, which would add up with every model.
    """
    import torch

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
