"""Reading blocks of single tensors from weight files. A whole file is never in memory, nor mapped into it."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechprobe.models.checkpoint import StoredTensor

BLOCK = 1 << 22
"""Entries of a block, 32 MiB in float64."""


@dataclass(frozen=True, slots=True)
class View:
    """A vector or a matrix in a weight file. One expert in a stack of experts is a matrix of its own.

    Attributes:
        name: Name of the tensor, with ``[i]`` for the expert of a stack.
        file: The weight file.
        key: Name in the file.
        shape: ``(n,)`` or ``(rows, columns)``.
        dtype: Dtype in the file.
        index: Place in a stack.
    """

    name: str
    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    index: int = 0

    @property
    def n(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def tall(self) -> bool:
        """Whether the first side is the longer one; a vector is tall."""
        return len(self.shape) == 1 or self.shape[0] >= self.shape[1]

    @property
    def short(self) -> int:
        """The smaller side; 1 for a vector."""
        return 1 if len(self.shape) == 1 else min(self.shape)

    @property
    def long(self) -> int:
        """The larger side."""
        return max(self.shape)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The blocks in which it is read, see `spans`."""
        return spans(self.long, self.short)


def views(file: Path, name: str, stored: StoredTensor) -> list[View]:
    """The vectors and matrices of a stored tensor.

    A tensor of three dimensions is a stack of matrices, unless one of the last two sides is 1; it is then one matrix, like a
    tensor of more dimensions, with all but the first side flattened.
    """
    shape = stored.shape
    if len(shape) == 3 and min(shape[1:]) > 1:
        rest = shape[1:]
        return [View(f"{name}[{i}]", file, name, rest, stored.dtype, i) for i in range(shape[0])]
    flat = shape if len(shape) <= 2 else (shape[0], prod(shape[1:]))
    return [View(name, file, name, flat or (1,), stored.dtype)]


def spans(long: int, short: int) -> list[tuple[int, int]]:
    """First and last place of every block of a matrix along its longer side; the smaller side of a vector is 1."""
    step = max(1, BLOCK // short)
    return [(start, min(start + step, long)) for start in range(0, long, step)]


def read_block(view: View, start: int, stop: int) -> Tensor:
    """A block in the stored dtype: ``[place]`` of a vector, ``[place, short]`` of a matrix; the longer side comes first."""
    if view.file.suffix != ".safetensors":
        return _from_pickle(view, start, stop)
    if len(view.shape) == 1:
        return _runs(view, [start], stop - start)[0]
    rows, columns = view.shape
    if view.tall:
        return _runs(view, [start * columns], (stop - start) * columns).reshape(-1, columns)
    if stop - start == columns:
        return _runs(view, [0], view.n).reshape(rows, columns).T
    return _runs(view, [row * columns + start for row in range(rows)], stop - start).T


def _runs(view: View, starts: Sequence[int], length: int) -> Tensor:
    """Runs of entries of one tensor, ``[run, entry]``."""
    stat = view.file.stat()
    size = view.dtype.itemsize
    begin = _offsets(view.file, stat.st_size, stat.st_mtime_ns)[view.key] + view.index * view.n * size
    buffer = bytearray(len(starts) * length * size)
    with view.file.open("rb") as opened, memoryview(buffer) as memory:
        for number, start in enumerate(starts):
            opened.seek(begin + start * size)
            opened.readinto(memory[number * length * size : (number + 1) * length * size])
    return torch.frombuffer(buffer, dtype=view.dtype).reshape(len(starts), length)


@lru_cache(maxsize=1024)
def _offsets(file: Path, _size: int, _changed: int) -> dict[str, int]:
    """First byte of every tensor of a safetensors file, whose header `mechprobe.models.checkpoint` has checked."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header: dict[str, Any] = json.loads(opened.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _from_pickle(view: View, start: int, stop: int) -> Tensor:
    stat = view.file.stat()
    value = _mapped(view.file, stat.st_size, stat.st_mtime_ns)[view.key]
    value = value.reshape(-1, *view.shape)[view.index]
    oriented = value if view.tall else value.T
    return oriented[start:stop]


@lru_cache(maxsize=2)
def _mapped(file: Path, _size: int, _changed: int) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file, mapped from it where torch can; the loader accepts nothing but tensors."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files from before torch 1.6 cannot be mapped
        return torch.load(file, map_location="cpu", weights_only=True)
