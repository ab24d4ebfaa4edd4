"""Clocks, rounds and summaries. Contestants take turns in one process, so a disturbance affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of one contestant, one entry per round.

    Attributes:
        wall: Wall-clock seconds.
        cpu: CPU seconds of all threads of the process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Spread of the wall-clock and of the CPU seconds."""
        return {"wall_s": spread(self.wall), "cpu_s": spread(self.cpu)}


class Clock:
    """Clock for calls on a device.

    On a GPU it synchronizes before and after the call; wall seconds are those between two CUDA events around the call.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def time(self, work: Callable[[], object], into: Times | None) -> None:
        """Run ``work`` once and add its seconds; ``into`` is None to warm up."""
        if self.on_gpu:
            torch.cuda.synchronize()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cpu = time.process_time()
            first.record()
            work()
            last.record()
            torch.cuda.synchronize()
            wall = first.elapsed_time(last) / 1e3
        else:
            cpu, start = time.process_time(), time.perf_counter()
            work()
            wall = time.perf_counter() - start
        if into is not None:
            into.wall.append(wall)
            into.cpu.append(time.process_time() - cpu)

    def now(self) -> float:
        """Current seconds, after all queued work has finished."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def take_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Clock, *, warm_up: int = 1
) -> dict[str, Times]:
    """Time every contestant once per round; each round begins with the next contestant."""
    times = {name: Times() for name in contestants}
    names = list(contestants)
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            clock.time(contestants[name], times[name] if number >= warm_up else None)
    return times


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and all values in the order of the rounds."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": [round(value, 6) for value in values],
    }


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Spread of the ratio within each round; a disturbance of a whole round cancels."""
    return spread([above / below for above, below in zip(numerator, denominator, strict=True)])


def wanted(name: str, found: float, at_least: float) -> dict[str, Any]:
    """A speed that is wanted, and whether it was reached, which is printed; other load on the machine lowers it."""
    met = found >= at_least
    print(f"  {'met' if met else 'MISSED'}  {name}: {found:.3g} (at least {at_least:.3g})", flush=True)
    return {"name": name, "found": found, "at_least": at_least, "met": met}
