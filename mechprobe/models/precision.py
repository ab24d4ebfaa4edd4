"""In which dtype and with which attention a model may run, and TF32 for its matrix products."""

import os
from collections import Counter
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.environment import require
from mechprobe.errors import ModelError
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.devices import PLACEMENTS, DeviceMap

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
ATTENTIONS = ("eager", "sdpa", "flash")
_ISA = "ONEDNN_MAX_CPU_ISA"


def check_dtype(dtype: str) -> None:
    """Raise `ModelError` for a dtype that is not ``auto`` or one of `DTYPES`."""
    if dtype not in (AUTO, *DTYPES):
        raise ModelError(f"dtype '{dtype}' is unknown; give {', '.join((AUTO, *DTYPES))}.")


def check_attention(attention: str, role: str, dtype: str, device: str) -> None:
    """Check that a model can have a kind of attention here, as far as that is known without its weights.

    Raises:
        ModelError: The kind is not one of `ATTENTIONS`, or it is flash and the model is on a CPU or in float32.
        DependencyError: The kind is flash, and its package is missing.
    """
    if attention not in ATTENTIONS:
        raise ModelError(f"attention '{attention}' is unknown; give {', '.join(ATTENTIONS)}.")
    if attention != "flash":
        return
    if not device.startswith("cuda") or dtype == "float32":
        raise ModelError(
            f"Model {role}: flash attention needs a CUDA device and a dtype of 16 bits, and the model is in {dtype} on {device}; "
            "set attention = 'eager' or 'sdpa'."
        )
    require("flash_attn", "attention = 'flash'")


def on_gpu(device: str, device_map: DeviceMap | None) -> bool:
    """Whether a model, or a part of it, is placed on another device than the CPU."""
    import torch

    if device_map is None:
        return torch.device(device).type != "cpu"
    if isinstance(device_map, str) and device_map in PLACEMENTS:
        return torch.cuda.is_available()
    places = [device_map] if isinstance(device_map, str) else device_map.values()
    return any(place not in ("cpu", "disk") for place in places)


def stored_dtype(folder: Path, *, role: str) -> str:
    """The dtype of most weights in the files of a folder; float32 where it is none of `DTYPES`."""
    entries = Counter[str]()
    for tensor in stored_tensors(folder, role=role).values():
        entries[str(tensor.dtype).removeprefix("torch.")] += prod(tensor.shape)
    found = next(iter(entries.most_common(1)), ("", 0))[0]
    return found if found in DTYPES else "float32"


@cache
def guard_bfloat16() -> None:
    """Keep oneDNN from instructions that end the process, where a bfloat16 product would be the first to use them.

    Some virtual machines announce AMX units that they lack. oneDNN reads the variable on first use, so this works after torch was
    imported. A value that the user set stays.
    """
    try:
        announced = "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        announced = False
    if announced:
        os.environ.setdefault(_ISA, "AVX512_CORE_BF16")


def allow_tf32(model: "nn.Module") -> None:
    """Let the matrix products of a model's forward calls use TF32 on NVIDIA cards; nothing outside of them changes."""
    import torch

    matmul: Any = torch.backends.cuda.matmul
    before: list[str] = []

    def start(*_: object) -> None:
        before.append(matmul.fp32_precision)
        matmul.fp32_precision = "tf32"

    def end(*_: object) -> None:
        if before:
            matmul.fp32_precision = before.pop()

    model.register_forward_pre_hook(start)
    model.register_forward_hook(end, always_call=True)
