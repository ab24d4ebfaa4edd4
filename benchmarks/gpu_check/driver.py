"""Starts the steps, each in its own process group that is killed at its limit, and merges their results."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.plan import STEPS, Step
from benchmarks.gpu_check.record import Record, write_json
from benchmarks.machine import FORMAT, RESULTS, installed

ROOT = Path(__file__).parents[2]
_TINY_LIMIT_S = 240


def run_step(arguments: argparse.Namespace) -> int:
    """Run one step in this process and write its file."""
    path = arguments.out / "steps" / f"{arguments.step}.json"
    record = Record(path, arguments.device, arguments.size == "tiny", arguments.seconds)
    record.save("unfinished")
    try:
        if arguments.device == "cpu":
            mend_interpreter()
        importlib.import_module(f"benchmarks.gpu_check.{arguments.step}").run(record)
    except Exception:  # noqa: BLE001 - whatever stops a step is its result
        record.save("failed", traceback.format_exc()[-4000:])
        print(traceback.format_exc(), file=sys.stderr)
        return 1
    failed = [check["name"] for check in record.checks if not check["ok"]]
    record.save("failed" if failed else "done", f"{len(failed)} checks fail, first: {failed[0]}" if failed else "")
    return int(bool(failed))


def mend_interpreter() -> None:
    """Let the interpreter of Triton 3.6 read numbers with NumPy 2.5, which converts arrays without axes only."""
    try:
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    except ImportError:
        return
    original = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


def run_all(arguments: argparse.Namespace) -> int:
    """Run every step, print a summary, write the merged result; 1 where a step did not pass."""
    chosen = [step for step in STEPS if not arguments.steps or step.name in arguments.steps]
    if arguments.device == "cuda" and (missing := _cuda_missing()):
        print(f"--device cuda: {missing}", file=sys.stderr)
        return 2
    _print_plan(chosen, arguments)
    began = time.monotonic()
    (arguments.out / "steps").mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    together = [step for step in chosen if not step.alone]
    # Steps that measure no time share the card; few processes start at once, because each imports torch.
    n_workers = 2 if arguments.size == "tiny" else max(1, min(4, (os.cpu_count() or 1) // 3))
    with ThreadPoolExecutor(max_workers=n_workers) as pool:
        states = pool.map(lambda step: _in_process(step, arguments, began), together)
        found |= dict(zip((step.name for step in together), states, strict=True))
    for step in chosen:
        if step.alone:
            found[step.name] = _in_process(step, arguments, began)
    return _finish(arguments, found, time.monotonic() - began)


def _cuda_missing() -> str | None:
    code = "import torch; print(torch.cuda.is_available(), torch.version.cuda)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stdout.startswith("True"):
        return None
    return f"torch finds no GPU here ({(done.stdout or done.stderr).strip()[-200:]})."


def _print_plan(steps: Sequence[Step], arguments: argparse.Namespace) -> None:
    print(f"GPU check on {arguments.device}, {arguments.size} sizes, at most {arguments.budget} s")
    for step in steps:
        how = "alone" if step.alone else "beside others"
        print(f"  {step.name:<9} about {step.expected:>3} s, at most {step.limit:>3} s, {how}: {step.does}")
    print(flush=True)


def _in_process(step: Step, arguments: argparse.Namespace, began: float) -> dict[str, Any]:
    """Run one step; returns what its file holds, with the state of its process."""
    left = arguments.budget - (time.monotonic() - began)
    tiny = arguments.size == "tiny"
    expected, limit = (10, _TINY_LIMIT_S) if tiny else (step.expected, step.limit)
    path = arguments.out / "steps" / f"{step.name}.json"
    path.unlink(missing_ok=True)
    if left < expected:
        print(f"{step.name}: skipped, {left:.0f} s are left and it needs about {expected} s", flush=True)
        return {"state": "skipped", "error": f"{left:.0f} s of the budget were left"}
    seconds = min(limit, left)
    log = path.with_suffix(".log")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", arguments.device, "--size", arguments.size]
    command += ["--out", str(arguments.out.resolve()), "--step", step.name, "--seconds", f"{seconds:.0f}"]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    found = _read(path)
    took = time.monotonic() - start
    if code is None:
        found |= {"state": "out of time", "error": f"killed after {took:.0f} s"}
    elif code and found.get("state") != "failed":
        found |= {"state": "crashed", "error": f"its process ended with code {code}: {_tail(log)}"}
    found["wall_seconds"] = round(took, 1)
    text = f": {str(found['error']).strip().splitlines()[-1][:300]}" if found.get("error") else ""
    checks = found.get("checks", [])
    passed = sum(check["ok"] for check in checks)
    print(f"{step.name}: {found['state']} in {took:.0f} s, {passed} of {len(checks)} checks hold{text}", flush=True)
    return found


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the step and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"state": "crashed"}


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-3:])[-600:]


def _finish(arguments: argparse.Namespace, found: dict[str, dict[str, Any]], seconds: float) -> int:
    machine = found.get("card", {}).get("results", {}).get("machine", {})
    card = re.sub(r"[^a-z0-9]+", "_", str(machine.get("device", "cpu")).lower()).strip("_")
    tiny = arguments.size == "tiny"
    report = {
        "format": FORMAT,
        "what": "the check of docs/gpu.md: correctness on the card, then speed",
        "note": "",
        "settings": {"device": arguments.device, "size": arguments.size, "budget": arguments.budget, "quick": tiny},
        "machine": machine,
        "versions": installed("torch", "triton", "transformers", "sae-lens"),
        "seconds": round(seconds, 1),
        "steps": found,
    }
    paths = [arguments.out / f"gpu_{card}.json"]
    if arguments.device == "cuda" and not tiny and not arguments.steps:
        paths.append(ROOT / RESULTS / f"gpu_{card}.json")
    for path in paths:
        write_json(path, report)
    print(f"\n{seconds:.0f} s in all; written: {', '.join(map(str, paths))}")
    for goal in (goal for step in found.values() for goal in step.get("goals", [])):
        word = "met   " if goal["met"] else "MISSED"
        print(f"  {word} {goal['name']}: {goal['found']:.3g} (at least {goal['at_least']:.3g})")
    bad = [name for name, step in found.items() if step["state"] != "done"]
    print("every step passed" if not bad else f"NOT PASSED: {', '.join(bad)}; see {arguments.out}/steps/")
    return int(bool(bad))
