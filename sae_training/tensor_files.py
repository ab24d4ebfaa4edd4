"""Safetensors files that several processes write and read together, each only its own latents.

A file has the bytes that ``safetensors.torch.save`` gives for the whole tensors, whatever the number of processes. Tensors
are copied in blocks, so no process holds a second copy of its part.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_training.atomic import atomic_path
from sae_training.errors import SaeTrainingError
from sae_training.parallel import Division

_BLOCK_BYTES = 1 << 25
_LARGEST_FIRST = {torch.int64: 3, torch.float64: 2, torch.float32: 1, torch.bfloat16: 0, torch.float16: -1}
"""Order of the types in a file of safetensors."""
_NAMES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def latent_axis(name: str) -> int | None:
    """The axis of the latents of a tensor of a crosscoder or of a training state; None for a tensor without one."""
    if name == "W_enc":
        return 1
    of_latents = ("W_dec", "b_enc", "threshold", "log_threshold", "tokens_since_fired")
    # the optimizer has encoder, decoder, b_enc, b_dec and log_threshold, in this order
    of_moments = name.startswith("adam.") and name.split(".")[1] != "3" and not name.endswith(".step")
    return 0 if name in of_latents or of_moments else None


@contextmanager
def written_together(final: Path, division: Division) -> Iterator[Path]:
    """`atomic_path` of the first process, in which all processes write; all leave when ``final`` is complete."""
    if division.is_first:
        with atomic_path(final, shared=division.alone) as temporary:
            yield Path(division.of_first(str(temporary)))
    else:
        yield Path(division.of_first(""))
    division.wait()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], d_sae: int, division: Division) -> None:
    """Write a file; all processes call this, each writes its latents, and all return when it is complete.

    Args:
        path: New file in a folder that all processes share.
        tensors: The tensors of this process: those with an axis of latents hold the latents of this process.
        d_sae: Number of latents of all processes.
        division: The processes.
    """
    names = sorted(tensors, key=lambda name: (-_LARGEST_FIRST[tensors[name].dtype], name))
    rows, header, offset = division.latents(d_sae), {}, 0
    for name in names:
        shape = list(tensors[name].shape)
        axis = _axis(name, tensors[name])
        if axis is not None:
            shape[axis] = d_sae
        end = offset + prod(shape) * tensors[name].element_size()
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    if division.is_first:
        with path.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(start + offset)
    division.wait()
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for name in names:
            axis = _axis(name, tensors[name])
            if division.is_first or (axis is not None and division.by_latents):
                place = start + header[name]["data_offsets"][0]
                _write(descriptor, place, tensors[name], axis, rows.start, d_sae)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    division.wait()


def _axis(name: str, tensor: Tensor) -> int | None:
    return latent_axis(name) if tensor.ndim else None  # most variants have one threshold


def _write(descriptor: int, place: int, tensor: Tensor, axis: int | None, first: int, d_sae: int) -> None:
    """Write a tensor whose latents begin at ``first`` of ``d_sae`` into the whole tensor at ``place``."""
    matrix = tensor.detach().reshape(1, -1) if tensor.ndim < 2 else tensor.detach().flatten(1)
    if axis == 0:
        n_columns = 1 if tensor.ndim < 2 else matrix.shape[1]
        place += first * n_columns * tensor.element_size()
    whole_row = d_sae if axis == 1 else matrix.shape[1]
    row_bytes, begin = whole_row * tensor.element_size(), first if axis == 1 else 0
    for rows in matrix.split(max(1, _BLOCK_BYTES // max(1, row_bytes))):
        block = rows.cpu().contiguous().view(torch.uint8).numpy()
        pieces = [block.reshape(-1)] if rows.shape[1] == whole_row else list(block)
        for number, piece in enumerate(pieces):
            at = place + begin * tensor.element_size() + number * row_bytes
            _write_all(descriptor, memoryview(piece), at)
        place += rows.shape[0] * row_bytes


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, place)
        data, place = data[done:], place + done


def read_part(path: Path, rows: slice, d_sae: int) -> dict[str, Tensor]:
    """Read a file of safetensors, of the tensors with an axis of latents only the latents ``rows``.

    Raises:
        SaeTrainingError: The file is missing or damaged.
    """
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                part = file.get_slice(name)
                shape: Sequence[int] = part.get_shape()
                axis = latent_axis(name) if shape else None
                if axis is not None and shape[axis] != d_sae:
                    raise SaeTrainingError(
                        f"{path}: {name} has {shape[axis]} latents in place of {d_sae}; restore a copy."
                    )
                found[name] = file.get_tensor(name) if axis is None else part[(slice(None),) * axis + (rows,)]
    except (OSError, SafetensorError) as error:
        raise SaeTrainingError(
            f"{path} cannot be read ({error}); it is missing or damaged; train the crosscoder again, or restore a copy."
        ) from None
    return found
