"""Memory and time of every stage against its ``--dry-run``, each stage in a new process.

    python -m benchmarks.plan_against_runs lab --folder /scratch/lab
    python -m benchmarks.plan_against_runs random --folder /scratch/random --models FOLDER
    python -m benchmarks.plan_against_runs table      # writes the table of docs/plan.md from the result file

``FOLDER`` is made by `python -m benchmarks.plan_families`. The machine is calibrated before the first stage and again after every
few, and an estimate uses the latest calibration. Memory is the greatest resident size of the largest process (``ru_maxrss``): it
counts pages of mapped files, and what glibc keeps in the arenas of its threads. Time is that of the clock; the time of the processors
stands beside it, which tells on a busy machine. An estimate takes files to be in memory already, because the first read from a disk
depends on what else the machine has done. So all files of the models and of the run are read once before each stage. Some counts
of the estimates, which the code marks as ours, were chosen on earlier runs of these families.

Results are kept after every stage, and the same command makes those that are missing. ``--stages`` makes some of them again. With
``--estimates`` it makes only their estimates again, after a change to an estimate and not to the stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.plan_families import LAB, Step, steps_of

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
FILE = RESULTS / "plan_against_runs.json"
FAMILIES = {"lab": "embedded lab", "random": "random family of 344M"}
MEMORY, TIME = 0.15, 0.30
"""How far an estimate may be off."""


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", "mechprobe", *(part for part in arguments)]


def estimate(step: Step, environment: Mapping[str, str]) -> dict[str, Any]:
    """The cost that ``--dry-run`` prints."""
    done = subprocess.run(
        command([*step.arguments, "--dry-run", "--json"]),
        capture_output=True,
        text=True,
        check=False,
        env=dict(environment),
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)["cost"][0]


def measure(step: Step, environment: Mapping[str, str], limit: float) -> dict[str, float]:
    """Seconds by the clock and of the processors, and the peak of the largest process, of the stage itself."""
    forced = [] if step.stage == "report" else ["--force"]
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command([*step.arguments, *forced, "--json"]), stdout=output, stderr=output, env=dict(environment)
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            took = time.monotonic() - began
            if pid:
                break
            if took > limit:
                process.kill()
                os.wait4(process.pid, 0)
                process.returncode = -9
                raise RuntimeError(f"it took more than {limit:.0f} s")
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(output.read().decode()[-300:])
    processors = usage.ru_utime + usage.ru_stime
    return {"seconds": round(took, 1), "processor_seconds": round(processors, 1), "bytes": usage.ru_maxrss * 1024}


def read_all(folders: Sequence[Path]) -> None:
    """Read every file below some folders, so that their pages are in memory."""
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def compare(
    step: Step, environment: Mapping[str, str], limit: float, folders: Sequence[Path], kept: Mapping[str, Any]
) -> dict[str, Any]:
    """What was said of a stage and what came, and by how much the first is off; ``kept`` has what came in an earlier comparison."""
    row: dict[str, Any] = {"load": round(os.getloadavg()[0], 2), "estimated_again": bool(kept)}
    try:
        said = estimate(step, environment)
        if kept:
            return _row({**row, "load": kept["load"]}, said, kept["came"])
        if step.stage == "features":  # the contexts, which it makes too, are a folder of their own
            shutil.rmtree(folders[-1] / "run" / "contexts", ignore_errors=True)
        read_all(folders)
        came = measure(step, environment, limit)
    except RuntimeError as error:
        return {**row, "error": " ".join(str(error).split())}
    return _row(row, said, came)


def _row(row: dict[str, Any], said: Mapping[str, Any], came: Mapping[str, float]) -> dict[str, Any]:
    row |= {"said": said, "came": came, "memory_off": round(said["host_bytes"] / came["bytes"] - 1, 3)}
    row["seconds_off"] = None if said["seconds"] is None else round(said["seconds"] / came["seconds"] - 1, 3)
    return row


def line_of(stage: str, row: Mapping[str, Any]) -> list[str]:
    """Stage, memory said and measured, by how much it is off, and the same of the time."""
    if "error" in row:
        return [stage, "–", "–", "–", "–", str(row["error"])[:60]]
    said, came = row["said"], row["came"]
    sizes = f"{said['host_bytes'] / 1e6:,.0f} / {came['bytes'] / 1e6:,.0f}"
    known = row["seconds_off"] is not None
    times = f"{said['seconds']:.1f} / {came['seconds']:.1f}" if known else f"– / {came['seconds']:.1f}"
    missed = [
        name
        for name, key, most in (("memory", "memory_off", MEMORY), ("time", "seconds_off", TIME))
        if abs(row[key] or 0) > most
    ]
    return [
        stage + ("*" if row.get("estimated_again") else ""), sizes, f"{row['memory_off']:+.0%}", times, f"{row['seconds_off']:+.0%}" if known else "–", ", ".join(missed)
    ]  # fmt: skip


def calibrate(environment: Mapping[str, str]) -> None:
    """Calibrate the machine."""
    subprocess.run(command(["bench", "--calibrate"]), check=True, stdout=subprocess.DEVNULL, env=dict(environment))


def run(arguments: argparse.Namespace) -> None:
    """Compare the stages that are missing or named, and keep the result after each."""
    began, _ = begin(arguments)
    folder, family = arguments.folder.resolve(), arguments.family
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(arguments.threads),
        "MECHPROBE_CALIBRATION": str(folder / "calibration.json"),
    }  # fmt: skip
    models = arguments.models.resolve() if arguments.models else None
    arguments.folder, arguments.models = folder.name, None  # the result names no place of this machine
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    families: dict[str, Any] = kept.get("families", {})
    rows: dict[str, Any] = families.setdefault(family, {})
    steps = [
        step for step in steps_of(family, folder, models) if not arguments.stages or step.stage in arguments.stages
    ]
    todo = [step for step in steps if arguments.stages or "came" not in rows.get(step.stage, {})]
    print("stage, MB said / measured, off, seconds said / measured, off")
    for number, step in enumerate(todo):
        if number % arguments.every == 0:
            calibrate(environment)
        came = rows.get(step.stage, {}) if arguments.estimates else {}
        rows[step.stage] = compare(
            step, environment, arguments.limit, [models or LAB, folder], came if "came" in came else {}
        )
        print("  ".join(line_of(step.stage, rows[step.stage])), flush=True)
        rates = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
        body = {"families": families, "calibration": {key: rates[key] for key in ("made", "start_s", "held", "units")}}
        packages = ("torch", "transformers", "mechprobe")
        write_report(arguments, what="plan_against_runs", began=began, packages=packages, body=body)


def markdown(report: Mapping[str, Any]) -> str:
    """The table of docs/plan.md."""
    lines = []
    for family, rows in report["families"].items():
        lines += [
            f"**{FAMILIES[family]}**",
            "",
            "| stage | MB said / measured | off | s said / measured | off | beyond the limit |",
        ]
        lines += [
            "|---|---|---|---|---|---|",
            *("| " + " | ".join(line_of(stage, row)) + " |" for stage, row in rows.items()),
            "",
        ]
    machine, settings = report["machine"], report["settings"]
    loads = [row["load"] for rows in report["families"].values() for row in rows.values()]
    where = f"{machine['cpu']}, {machine['cores']} cores, {settings['threads']} thread(s), load {min(loads):g} to {max(loads):g}"
    again = any(row.get("estimated_again") for rows in report["families"].values() for row in rows.values())
    where += "; * estimated after the run" if again else ""
    return "\n".join(
        [*lines, f"{where}. Limits: memory {MEMORY:.0%}, time {TIME:.0%}. File: `artifacts/benchmarks/{FILE.name}`."]
    )


def filled(page: str, file: Path = FILE) -> str:
    """The page with the table of the result file."""
    text = "Not measured yet." if not file.is_file() else markdown(json.loads(file.read_text(encoding="utf-8")))
    return re.sub(
        r"(<!-- table plan -->\n).*?(<!-- end plan -->)",
        lambda found: f"{found[1]}{text}\n{found[2]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Compare a family, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=FILE, rounds=1)
    parser.add_argument("family", choices=(*FAMILIES, "table"))
    parser.add_argument(
        "--folder", type=Path, help="scratch folder for the runs of this family; it is kept, and resumed"
    )
    parser.add_argument("--models", type=Path, help="folder with base, sft and rl of the random family")
    parser.add_argument("--stages", nargs="+", default=[], help="only these stages, made again")
    parser.add_argument(
        "--estimates",
        action="store_true",
        help="with --stages: make estimates again, and keep what came of these stages",
    )
    parser.add_argument("--every", type=int, default=6, help="stages between two calibrations")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a stage is given up")
    arguments = parser.parse_args()
    if arguments.family == "table":
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), arguments.out), encoding="utf-8")
        return
    if arguments.folder is None:
        parser.error("give --folder, where the runs are made")
    run(arguments)


if __name__ == "__main__":
    main()
