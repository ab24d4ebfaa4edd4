"""How every command ends under falling limits of its address space (``ulimit -v``).

    python -m benchmarks.ulimit --run COPY_OF_A_FINISHED_RUN --out artifacts/benchmarks/ulimit_cpu.json

Each command first runs without a limit, which gives the address space it needs and the bytes of its files. Then it runs with shares
of that space, and with sizes that do not suffice for its imports. It may end with the same bytes, or with one sentence and exit code
2. The table counts the sentences apart that say that a library ended the process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.silence import commands, write_inputs

_START = """\
import os, sys
from mechprobe.cli import main
code = main()
peak = os.environ.get("ULIMIT_PEAK")
if peak:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmPeak"))
    open(peak, "w").write(line.split()[1])
sys.exit(code)
"""
_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3)
_SMALLEST = (24, 64)
"""MiB."""
_SECONDS = 180
_GOOD = ("equal", "sentence", "library", "checks failed")
"""``library``: one sentence after a library has ended the process. ``checks failed``: `doctor` prints what failed, and exits with 1."""


@dataclass(frozen=True)
class End:
    """How a command ended: a word for the table, and what it said last."""

    kind: str
    said: str


def run_limited(
    command: Sequence[str], limit: int | None, peak: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process whose address space is limited to ``limit`` bytes."""
    environment = {**os.environ, **({"ULIMIT_PEAK": str(peak)} if peak else {})}
    sized = partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit)) if limit else None
    return subprocess.run(
        [sys.executable, "-c", _START, *command], env=environment, capture_output=True, text=True, errors="replace",
        preexec_fn=sized, timeout=_SECONDS, check=False,
    )  # fmt: skip


def digests(*folders: Path) -> dict[str, str]:
    """sha256 of every file that a manifest vouches for."""
    found: dict[str, str] = {}
    for manifest in (file for folder in folders for file in sorted(folder.rglob("manifest.json"))):
        for name in json.loads(manifest.read_text(encoding="utf-8")).get("outputs", {}):
            file = manifest.parent / name
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
    return found


def ended(done: subprocess.CompletedProcess[str], same: bool) -> End:
    """The kind of an end. ``same`` is whether the files have the bytes of the run without a limit."""
    lines = done.stderr.strip().splitlines()
    said = next((line for line in reversed(lines) if line.startswith("mechprobe: ")), lines[-1] if lines else "")[:300]
    if "Traceback" in done.stderr or "panicked at" in done.stderr:
        return End("traceback", said)
    if done.returncode == 0:
        return End("equal" if same else "other bytes", said)
    if done.returncode == 2:
        sentence = "library" if said.startswith("mechprobe: a library ended") else "sentence"
        return End(sentence if said.startswith("mechprobe: ") else "no sentence", said)
    if done.returncode < 0:
        return End(signal.Signals(-done.returncode).name, said)
    return End(f"exit code {done.returncode}", said)


def ends(
    name: str, command: Sequence[str], run: Path, scratch: Path, limits: Sequence[int]
) -> Iterator[dict[str, object]]:
    """One row for each limit of one command, after a run without a limit."""
    with tempfile.NamedTemporaryFile() as file:
        _renew(scratch)
        first = run_limited(command, None, Path(file.name))
        if first.returncode:
            yield {"command": name, "limit_mib": None, "end": "fails without a limit", "said": first.stderr[-300:]}
            return
        peak, expected = int(Path(file.name).read_text()) * 1024, digests(run, scratch)
    yield {"command": name, "limit_mib": None, "end": "equal", "needs_mib": peak >> 20, "said": ""}
    shares = {*(int(share * peak) for share in _SHARES), *(size << 20 for size in _SMALLEST)}
    for limit in limits or sorted(shares, reverse=True):
        _renew(scratch)
        try:
            done = run_limited(command, limit)
        except subprocess.TimeoutExpired:
            end = End("hangs", f"no end within {_SECONDS} s")
        else:
            end = ended(done, digests(run, scratch) == expected)
            if name.startswith("doctor") and end.kind == "exit code 1":
                end = End("checks failed", end.said)
        row: dict[str, object] = {"command": name, "limit_mib": limit >> 20, "share": round(limit / peak, 2)}
        yield {**row, "end": end.kind, "said": end.said}


def _renew(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_inputs(scratch)


def main() -> None:
    """Run the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="A copy of a finished run; its stages are made again.")
    parser.add_argument("--scratch", type=Path, default=Path("runs/ulimit"), help="Folder for other output.")
    parser.add_argument("--only", nargs="*", help="Names of commands.")
    parser.add_argument("--limits", nargs="*", type=int, default=[], help="Limits in MiB, instead of falling shares.")
    add_shared_options(parser, out=RESULTS / "ulimit_cpu.json", rounds=1)
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    rows: list[dict[str, object]] = []
    for name, command in commands(arguments.run, arguments.scratch).items():
        if arguments.only and name not in arguments.only:
            continue
        for row in ends(name, command, arguments.run, arguments.scratch, [size << 20 for size in arguments.limits]):
            rows.append(row)
            print(json.dumps(row), flush=True)
    counts = Counter(str(row["end"]) for row in rows)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    write_report(
        arguments,
        what="ulimit",
        began=began,
        packages=("torch", "transformers"),
        body={"ends": dict(counts), "commands": rows},
    )
    sys.exit(any(kind not in _GOOD for kind in counts))


if __name__ == "__main__":
    main()
