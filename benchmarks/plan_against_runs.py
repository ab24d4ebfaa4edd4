"""Memory and time of every stage of a run against its ``--dry-run``, each stage in a new process.

    mechprobe bench --calibrate && python -m benchmarks.plan_against_runs --run COPY_OF_A_RUN --out artifacts/benchmarks/plan_against_runs.json

Every stage of the finished run is made again with ``--force``, so give a copy. Memory is the peak of the largest process. Nothing is
fitted to the run: the estimate knows it through the calibration of the machine and the counts of finished stages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report

STAGES = ("localize", "cache", "train-sae", "features", "evaluate", "select", "intervene")


def estimate(run: Path, stage: str) -> dict[str, Any]:
    """The cost that ``--dry-run`` prints."""
    command = [sys.executable, "-m", "mechprobe", stage, "--run", str(run), "--force", "--dry-run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["cost"][0]


def measure(run: Path, stage: str) -> dict[str, float]:
    """Seconds and peak bytes of the stage itself."""
    command = [sys.executable, "-m", "mechprobe", stage, "--run", str(run), "--force", "--json"]
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.monotonic() - began
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{stage} failed: {output.read().decode()[-500:]}")
    return {"seconds": round(took, 1), "bytes": usage.ru_maxrss * 1024}


def main() -> None:
    """Compare, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "plan_against_runs.json", rounds=1)
    parser.add_argument("--run", type=Path, required=True, help="a copy of a finished run; its stages are made again")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    rows = {}
    print(f"{'stage':<10} {'memory':>16} {'off':>6}   {'seconds':>16} {'off':>6}")
    for stage in arguments.stages:
        said, came = estimate(arguments.run, stage), measure(arguments.run, stage)
        memory = said["host_bytes"] / came["bytes"] - 1
        seconds = None if said["seconds"] is None else said["seconds"] / came["seconds"] - 1
        rows[stage] = {"said": said, "came": came, "memory_off": memory, "seconds_off": seconds}
        sizes = f"{said['host_bytes'] / 1e6:.0f} / {came['bytes'] / 1e6:.0f} MB"
        times = "–" if seconds is None else f"{said['seconds']:.1f} / {came['seconds']:.1f} s"
        print(
            f"{stage:<10} {sizes:>16} {memory:>+6.0%}   {times:>16} {'–' if seconds is None else format(seconds, '+.0%'):>6}"
        )
    arguments.run = arguments.run.name
    write_report(
        arguments,
        what="plan_against_runs",
        began=began,
        packages=("torch", "transformers", "mechprobe"),
        body={"stages": rows},
    )


if __name__ == "__main__":
    main()
