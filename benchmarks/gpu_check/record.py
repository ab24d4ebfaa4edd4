"""The result file of one step, written again after every part, so that a killed step leaves what it measured."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Clock, wanted


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that JSON lacks become text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """||found − exact|| / ||exact|| in float64; infinity if a value is not finite."""
    found, exact = found.double(), exact.double().to(found.device)
    scale = float(exact.norm())
    error = float((found - exact).norm()) / scale if scale else float(found.norm())
    return error if error == error else float("inf")


@dataclass
class Record:
    """What one step has found so far.

    Attributes:
        path: The result file.
        device: torch device of the step.
        tiny: Whether all sizes are small, to rehearse the step on a CPU.
        seconds: Seconds after which the step is killed.
    """

    path: Path
    device: str
    tiny: bool
    seconds: float
    checks: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)

    @property
    def left(self) -> float:
        """Seconds that are left of the step."""
        return self.seconds - (time.monotonic() - self.began)

    def put(self, name: str, value: Any) -> None:
        """Keep a measurement."""
        self.results[name] = value
        self.save("unfinished")

    def check(self, name: str, found: float, at_most: float) -> None:
        """A number that must not exceed a limit; the step fails otherwise."""
        ok = found <= at_most
        self.checks.append({"name": name, "found": found, "at_most": at_most, "ok": ok})
        print(f"  {'holds' if ok else 'FAILS'}  {name}: {found:.3g} (at most {at_most:.3g})", flush=True)
        self.save("unfinished")

    def goal(self, name: str, found: float, at_least: float) -> None:
        """A speed that is wanted. Missing it is reported, and does not fail the step; tiny sizes have no goals."""
        if self.tiny:
            return
        self.goals.append(wanted(name, found, at_least))
        self.save("unfinished")

    def save(self, state: str, error: str = "") -> None:
        """Write the file; ``state`` is ``unfinished``, ``done`` or ``failed``."""
        found = {
            "state": state,
            "seconds": round(time.monotonic() - self.began, 1),
            "checks": self.checks,
            "goals": self.goals,
            "results": self.results,
        }
        write_json(self.path, found | ({"error": error} if error else {}))


def peak_memory(device: str) -> int | None:
    """Most bytes of the GPU in use by tensors since the last call; None on a CPU."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
