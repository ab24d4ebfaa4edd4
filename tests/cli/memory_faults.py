"""Errors of libraries that have no memory left, raised at a chosen forward pass or at a chosen call of mechprobe's own functions."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
PLACES = tuple(f"{ROOT / name}{os.sep}" for name in ("mechprobe", "sae_training"))
ENDING = str(ROOT / "mechprobe" / "cli" / "ending.py")
MODELS = ("ForCausalLM", "ForSequenceClassification", "Crosscoder")
Make = Callable[[], BaseException]


def _of_arrow() -> BaseException:
    from pyarrow.lib import ArrowMemoryError

    return ArrowMemoryError("malloc of size 8589934592 failed")


def _of_numpy() -> BaseException:
    from numpy._core._exceptions import _ArrayMemoryError  # pyright: ignore[reportPrivateUsage]

    return _ArrayMemoryError((1 << 30,), np.dtype("float64"))


ERRORS: dict[str, Make] = {
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "8589934592 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::ThrowEnforceNotMet"
    ),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
    "python": MemoryError,
    "numpy": _of_numpy,
    "arrow": _of_arrow,
    "thread": lambda: RuntimeError("can't start new thread"),
}


@dataclass
class Fault:
    """One error that waits for its place.

    Attributes:
        make: Makes the error.
        at: Number of the call that fails, from 1; 0 only counts.
        n: Calls so far.
        where: The function or module that failed.
    """

    make: Make
    at: int
    n: int = 0
    where: str = ""

    def count(self, where: str) -> None:
        """Count a call, and fail at the chosen one."""
        self.n += 1
        if self.n == self.at:
            self.where = where
            raise self.make()


@contextmanager
def in_forward_passes(make: Make, at: int) -> Iterator[Fault]:
    """Fail in a forward pass of a model or crosscoder."""
    fault = Fault(make, at)

    def before(module: torch.nn.Module, _inputs: Any) -> None:
        if type(module).__name__.endswith(MODELS):
            fault.count(type(module).__name__)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield fault
    finally:
        handle.remove()


@contextmanager
def in_calls(make: Make, at: int, within: tuple[str, ...] = PLACES) -> Iterator[Fault]:
    """Fail at the beginning of a function of the given files, in whichever thread it runs."""
    fault = Fault(make, at)

    def called(frame: FrameType, event: str, _value: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(within) and file != ENDING:
            fault.count(f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}")

    before = sys.getprofile()
    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield fault
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]
