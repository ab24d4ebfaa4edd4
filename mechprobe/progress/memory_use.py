"""Memory of this process, and what torch holds on the GPUs."""

import os
import resource
import sys
from pathlib import Path
from typing import Any


def resident_bytes() -> int:
    """Resident memory of this process; its peak on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def device_bytes() -> int | None:
    """What torch holds on all GPUs together; None where this process uses none."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return None
        return sum(int(cuda.memory_reserved(device)) for device in range(cuda.device_count()))
    except AttributeError:  # another thread is still importing torch
        return None


def memory_in_use() -> list[str]:
    """Memory of this process, and of the GPUs if it uses any, as texts."""
    on_devices = device_bytes()
    gpu = [] if on_devices is None else [f"GPU {size(on_devices)}"]
    return [f"RAM {size(resident_bytes())}", *gpu]


def size(n_bytes: int) -> str:
    """Bytes as MB or GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
