"""Peak memory of one contestant in a new process, above the memory of imports, data and a warm-up step.

An earlier, larger peak would hide that of the contestant. So `peak_in_new_process` starts a process for each contestant,
which runs `peak_bytes`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import CONTESTANTS, Setting
from benchmarks.planted_data import planted_batches

_STEPS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(name: str, setting: Setting, batches: list[Tensor] | None = None) -> dict[str, int]:
    """Peak bytes of building a contestant and of three steps, above the memory of the process before.

    The memory before includes all imports, two batches, and a step of a tiny dictionary, which loads the libraries. The
    high-water mark is reset first: that of the process on a CPU (``ru_maxrss``), that of the allocator on a GPU.
    """
    batches = batches or planted_batches(setting, n_batches=2)
    tiny = replace(setting, d_model=8, d_sae=64, k=4, batch_size=32)
    CONTESTANTS[name](tiny).step(planted_batches(tiny, n_batches=1)[0])
    gc.collect()
    before = _reset(setting.device)
    contestant = CONTESTANTS[name](setting)
    for number in range(_STEPS):
        contestant.step(batches[number % len(batches)])
    peak = _peak(setting.device)
    return {"before": before, "peak": peak, "above": peak - before, "weights": 4 * contestant.n_parameters}


def _reset(device: str) -> int:
    """Reset the high-water mark, and return the bytes in use."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # freed memory that glibc keeps would hide later allocations
        trim(0)
    _CLEAR.write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak(device: str) -> int:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_in_new_process(name: str, setting: Setting, threads: int) -> dict[str, int]:
    """`peak_bytes`, run in a fresh interpreter with the environment of this one.

    Raises:
        RuntimeError: The process failed; the message holds the end of its stderr.
    """
    request = json.dumps({"name": name, "setting": asdict(setting), "threads": threads})
    command = [sys.executable, "-m", "benchmarks.memory", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the memory of {name} could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    request: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    print(json.dumps(peak_bytes(request["name"], Setting(**request["setting"]))))


if __name__ == "__main__":
    _main()
