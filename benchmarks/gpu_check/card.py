"""Step ``card``: what the machine is, and the two rates that bound every other number."""

from __future__ import annotations

import statistics
import subprocess
from typing import Any

import torch

from benchmarks.gpu_check.record import Record
from benchmarks.machine import describe_machine, installed
from benchmarks.timing import Clock, Times

PACKAGES = ("torch", "triton", "transformers", "numpy", "h5py", "sae-lens", "transformer-lens")
_ROUNDS = 9


def rates(device: str, *, square: int, copied_bytes: int) -> dict[str, float]:
    """TFLOP/s of a square bfloat16 product on random numbers, and GB/s of a copy, counting bytes read and written."""
    one, other = (torch.randn(square, square, device=device).bfloat16() for _ in range(2))
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    out = torch.empty_like(one)
    product = _median(lambda: torch.mm(one, other, out=out), device)
    copy = _median(lambda: target.copy_(source), device)
    return {"bfloat16_tflops": 2 * square**3 / product / 1e12, "copy_gb_per_s": 2 * copied_bytes / copy / 1e9}


def _median(work: Any, device: str) -> float:
    clock, times = Clock(device), Times()
    for number in range(_ROUNDS + 3):
        clock.time(work, times if number >= 3 else None)
    return statistics.median(times.wall)


def sized_rates(record: Record) -> dict[str, float]:
    """`rates` at the size of the check."""
    if record.tiny:
        return rates(record.device, square=128, copied_bytes=1 << 20)
    return rates(record.device, square=8192, copied_bytes=1 << 30)


def describe(device: str) -> dict[str, Any]:
    """The machine, its card and its driver; no host name."""
    found = describe_machine()
    if torch.device(device).type != "cuda":
        return found
    card = torch.cuda.get_device_properties(0)
    return {
        **found,
        "device": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "device_memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0]


def run(record: Record) -> None:
    """Describe the machine and measure its rates."""
    record.put("machine", describe(record.device))
    record.put("versions", installed(*PACKAGES))
    record.put("allow_tf32", torch.backends.cuda.matmul.allow_tf32)
    record.put("rates", sized_rates(record))
