"""Run the check: every step in its own process, within its own time and the time of the whole.

    python -m benchmarks.gpu_check                                 # on a CUDA device, at most eight minutes
    python -m benchmarks.gpu_check --device cpu --size tiny        # a rehearsal: small sizes, kernels in Triton's interpreter

Results: ``OUT/steps/STEP.json`` as each step ends, ``OUT/gpu_CARD.json`` with all of them, and for a whole check on a card
also ``artifacts/benchmarks/gpu_CARD.json``, from which `benchmarks.tables` makes the tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.plan import BUDGET_S, STEPS


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny shows that every step runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="folder of the results")
    parser.add_argument("--budget", type=int, default=BUDGET_S, help="seconds of the whole check")
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS], help="only these steps")
    parser.add_argument("--step", choices=[step.name for step in STEPS], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    return parser


def settle_environment(device: str) -> None:
    """Variables that libraries read when they are imported; they hold for the processes of the steps too."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",  # as in mechprobe's CLI
        **({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if device == "cpu" else {}),
    }.items():
        os.environ.setdefault(name, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step in this process, or all of them; the exit code is 1 where a step failed."""
    arguments = options().parse_args(argv)
    settle_environment(arguments.device)
    if arguments.device == "cpu" and arguments.size == "full":
        print("--device cpu needs --size tiny: the full sizes take a GPU.", file=sys.stderr)
        return 2
    from benchmarks.gpu_check import driver

    if arguments.step:
        return driver.run_step(arguments)
    return driver.run_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
