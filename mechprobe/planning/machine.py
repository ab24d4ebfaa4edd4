"""This machine: its name, and the rates that were measured on it."""

import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mechprobe.errors import ConfigError
from mechprobe.planning.cards import CARDS
from mechprobe.planning.rates import HELD, Rates, default_place

_NOT_MEASURED = "no time, because this machine is not calibrated: `mechprobe bench --calibrate` takes a minute"


def device_name(kind: str) -> str:
    """Name of the card, or of the processor; empty where there is no card."""
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measured_elsewhere(rates: Rates) -> list[str]:
    """A sentence where rates were measured on another device than that of this machine, or with other threads; else nothing."""
    if rates.source != "measured":
        return []
    here, threads = device_name(rates.device), rates.made.get("threads")
    torch = sys.modules.get("torch")  # without it the command has no threads of torch
    now = threads if torch is None or rates.device == "cuda" else torch.get_num_threads()
    if (rates.name, threads) == (here, now):
        return []
    return [
        f"The rates were measured elsewhere: on {_with_threads(rates.name, threads)}; here is {_with_threads(here, now)}. "
        "`mechprobe bench --calibrate` measures this machine."
    ]


def _with_threads(name: str, threads: object) -> str:
    return f"{name or 'no card'} with {threads} thread{'' if threads == 1 else 's'}"


def rates_here(device: str) -> tuple[Rates, bool, list[str]]:
    """The rates of this machine, whether they were measured on such a device, and what there is to say about them.

    Where they were not measured, sizes are right and times are left out.
    """
    kind: Literal["cpu", "cuda"] = "cuda" if device.startswith("cuda") else "cpu"
    said = _NOT_MEASURED
    try:
        found = Rates.load(default_place())
        if found.device == kind:
            return found, True, measured_elsewhere(found)
    except ConfigError as error:
        if default_place().is_file():
            said = f"no time: {error}"
    card = Rates.of_card(CARDS["A100"])
    return card if kind == "cuda" else replace(card, device="cpu", held=HELD), False, [said]
