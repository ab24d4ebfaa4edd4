"""Shared parts of the benchmarks: options, environment of the process, description of the machine, and the result file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FORMAT = 2
"""Format of the result files; `benchmarks.tables` reads no other."""

TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
"""With these variables, glibc keeps freed memory instead of returning every large tensor and faulting it in again."""

RESULTS = Path("artifacts/benchmarks")


def add_shared_options(parser: argparse.ArgumentParser, *, out: Path, rounds: int) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--out", type=Path, default=out, help="result file (JSON)")
    parser.add_argument("--rounds", type=_positive, default=rounds, help="number of timed rounds")
    parser.add_argument("--threads", type=_positive, default=1, help="torch threads")
    parser.add_argument("--malloc", choices=("default", "tuned"), default="default", help="tuned: see README.md")
    parser.add_argument("--note", default="", help="text for the result file, for example what else ran")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and two rounds, which only show that the script runs"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def settle_environment(malloc: str) -> None:
    """Restart the process if its allocator settings are not the requested ones, because glibc reads them at start only.

    As in mechprobe's CLI, oneDNN must not use AMX instructions, which some virtual machines announce but lack.
    """
    wanted = TUNED_MALLOC if malloc == "tuned" else {}
    environment = {name: value for name, value in os.environ.items() if name not in TUNED_MALLOC} | wanted
    environment.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def begin(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Apply the shared options; returns the description of the machine and the number of timed rounds."""
    settle_environment(arguments.malloc)
    torch.set_num_threads(arguments.threads)
    return describe_machine(), 2 if arguments.quick else arguments.rounds


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and the load of the last minute; no host name."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def installed(*packages: str) -> dict[str, str | None]:
    """Versions of packages; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def write_report(
    arguments: argparse.Namespace, *, what: str, began: dict[str, Any], packages: Sequence[str], body: Mapping[str, Any]
) -> None:
    """Write the result file atomically: settings, machine before and after, versions, then ``body``."""
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "note", "scratch")}
    report = {
        "format": FORMAT,
        "what": what,
        "note": arguments.note,
        "settings": settings,
        "machine": {**began, "load_1min_at_the_end": round(os.getloadavg()[0], 2)},
        "versions": installed(*packages),
        **body,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    partial.write_text(json.dumps(report, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
    partial.replace(arguments.out)
    print(f"written: {arguments.out}")
