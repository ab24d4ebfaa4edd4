"""Choice of the implementation of the sparse step, and the share of active latents below which it is faster."""

import importlib
import importlib.util
import logging
import os
import subprocess
from functools import cache
from typing import Literal

import torch

from sae_training.errors import SaeTrainingError

Backend = Literal["embedding_bag", "triton"]
Kernel = Literal["auto", "dense", "sparse", "triton"]

logger = logging.getLogger(__name__)


@cache
def triton_missing(device_type: str) -> str | None:
    """Why Triton cannot run on a type of device, or None if it can. On ``cuda``, this runs a kernel."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        products = importlib.import_module("sae_training.kernels.products")
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return f"Triton cannot be imported ({error})"
    if device_type != "cuda":
        return None
    one = torch.ones(1, device=device_type)
    try:
        products.column_sum(one, one.long() - 1, one.long())
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # no C compiler, an old driver, an old card
        return f"Triton cannot run a kernel here ({(str(error) or repr(error)).splitlines()[0]})"
    return None


def interpreted() -> bool:
    """Whether Triton was imported with ``TRITON_INTERPRET=1``, so that its interpreter runs kernels on CPU tensors."""
    if os.environ.get("TRITON_INTERPRET") != "1" or triton_missing("cpu") is not None:
        return False
    # Triton reads the variable at its first import, and it may have been set after that.
    language = importlib.import_module("triton.language")
    return type(language.sum).__name__ == "InterpretedFunction"


def choose_backend(kernel: Kernel, device: torch.device) -> Backend | None:
    """The implementation of the sparse step for ``TrainConfig.kernel`` on a device, or None if all steps are dense.

    Raises:
        SaeTrainingError: The kernel is sparse or triton, and cannot run on the device.
    """
    if kernel == "dense":
        return None
    if device.type == "cpu" and kernel != "triton":
        return "embedding_bag"
    if kernel == "auto":
        return "triton" if device.type == "cuda" and _triton_or_warn() else None
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        runs_on = "a CPU or a CUDA device"
        if kernel == "triton":
            runs_on = "a CUDA device, or a CPU when TRITON_INTERPRET=1 was set before Triton was imported"
        raise SaeTrainingError(f"kernel {kernel!r} runs on {runs_on}; the crosscoder is on {device}, use 'auto'.")
    missing = triton_missing(device.type)
    if missing is not None:
        raise SaeTrainingError(
            f"kernel {kernel!r} on {device} needs Triton: {missing}; install the triton release for torch "
            f"{torch.__version__}, or use 'dense'."
        )
    return "triton"


@cache
def _triton_or_warn() -> bool:
    missing = triton_missing("cuda")
    if missing is not None:
        logger.warning("%s: the crosscoder's steps on the GPU are dense; install triton for sparse ones", missing)
    return missing is None


def break_even_density(bandwidth: float, flops: float, element_bytes: int) -> float:
    """The share of active latents at which a sparse product takes as long as the dense product that it replaces.

    A dense product of B rows takes 2 B F D operations. A sparse one is limited by memory, and reads B k D elements.
    From 2 B F D / flops = B k D element_bytes / bandwidth follows k / F = 2 bandwidth / (flops element_bytes). This is
    the cost model of docs/kernels.md. Reads from the cache raise the break-even point.

    Args:
        bandwidth: Memory bandwidth of the device in bytes per second.
        flops: Rate of the dense product in operations per second.
        element_bytes: Size of a gathered element in bytes.
    """
    return 2 * bandwidth / (flops * element_bytes)
