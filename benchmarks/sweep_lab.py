"""Time of the three commands that follow all checkpoints of the embedded lab: skills, divergence and log-probabilities.

    python -m benchmarks.sweep_lab                # about 4 minutes; writes artifacts/benchmarks/sweep_lab.json
    python -m benchmarks.sweep_lab --kill         # also kills each command (SIGKILL) half-way, resumes it, and compares the bytes
    python -m benchmarks.sweep_lab --finished     # prints the result

The commands are those of docs/sweep.md, each in a process of its own with one torch thread; stages that a command needs (the store of
``drift``, the outcomes of ``logprobs``) count too. ``cpu_s`` is user and system time, which another load on the machine changes little.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from mechprobe.files import read_json, write_json
from mechprobe.lab.summary import shipped
from mechprobe.stage_folder import MANIFEST

LIMIT_S = 300
RESULT = Path("artifacts/benchmarks/sweep_lab.json")
PROMPTS = 500
COMMANDS: dict[str, list[str]] = {"sweep": [], "drift": ["--set", f"cache.max_prompts={PROMPTS}"], "logprobs": []}


def command(name: str, run: Path) -> list[str]:
    """The command line of one part."""
    checkpoints = ["--checkpoints", str(shipped() / "checkpoints")]
    return [sys.executable, "-m", "mechprobe", name, "--run", str(run), *checkpoints, *COMMANDS[name]]


def timed(name: str, run: Path) -> dict[str, float]:
    """Run a command to its end, and return its wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _start(name, run).wait()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}


def _start(name: str, run: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f"{run.name}_{name}.log").open("ab") as log:
        return subprocess.Popen(command(name, run), env=environment, stdout=log, stderr=log)


def killed(name: str, run: Path, seconds: float) -> dict[str, Any]:
    """Kill a command after so many seconds, run it again, and say whether a finished stage was made again."""
    process = _start(name, run)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    code = process.wait()
    kept = {path: path.stat().st_mtime_ns for path in run.rglob(MANIFEST)}
    _start(name, run).wait()
    again = [str(path.relative_to(run)) for path, when in kept.items() if path.stat().st_mtime_ns != when]
    return {"killed": code == -9, "finished_before": len(kept), "made_again": again}


def outputs(run: Path) -> dict[str, dict[str, str]]:
    """Stage folder → the sha256 of every output."""
    return {str(path.parent.relative_to(run)): read_json(path)["outputs"] for path in sorted(run.rglob(MANIFEST))}


def show(result: dict[str, Any]) -> list[str]:
    """The times, and what a kill changed."""
    parts = result["parts"]
    lines = [f"{name:<10} {part['wall_s']:7.1f} s  CPU {part['cpu_s']:7.1f} s" for name, part in parts.items()]
    total = {key: sum(part[key] for part in parts.values()) for key in ("wall_s", "cpu_s")}
    lines.append(
        f"{'in all':<10} {total['wall_s']:7.1f} s  CPU {total['cpu_s']:7.1f} s  (limit {LIMIT_S} s on two free cores; load "
        f"{result['machine']['load_1min']})"
    )
    for name, part in result.get("kill", {}).items():
        if name != "different":
            lines.append(
                f"{name}: killed with {part['finished_before']} stages finished; made again: {part['made_again']}"
            )
    if "kill" in result:
        lines.append(f"Stages whose outputs differ from those without a kill: {result['kill']['different']}")
    return lines


def main() -> None:
    """Measure, or print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep_lab"), help="Scratch folder, emptied first.")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--finished", action="store_true")
    options = parser.parse_args()
    if options.finished:
        print("\n".join(show(read_json(RESULT))))
        return
    shutil.rmtree(options.runs, ignore_errors=True)
    whole, at_start = options.runs / "whole", describe_machine()
    result: dict[str, Any] = {"parts": {name: timed(name, whole) for name in COMMANDS}, "prompts": PROMPTS}
    result["machine"] = at_start
    if options.kill:
        torn = options.runs / "torn"
        found: dict[str, Any] = {name: killed(name, torn, result["parts"][name]["wall_s"] / 2) for name in COMMANDS}
        first, second = outputs(whole), outputs(torn)
        found["different"] = [name for name in first | second if first.get(name) != second.get(name)]
        result["kill"] = found
    write_json(RESULT, result)
    print("\n".join(show(result)))


if __name__ == "__main__":
    main()
