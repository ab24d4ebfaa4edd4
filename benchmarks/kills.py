"""Kill one of the processes that divide a stage, at random moments, and compare what is made afterwards with one process alone.

    python -m benchmarks.kills --run COPY_OF_A_FINISHED_RUN --kills 10 --seed 0 --out artifacts/benchmarks/kills_cpu.json

For every stage a copy of the run without it is made. One process alone gives the reference. ``--processes`` processes under
torchrun give the duration, and the same bytes. Each kill draws a stage, a process and a moment, sends SIGKILL, and checks: the
other processes end with exit code 2, one sentence is said, every file under its final name is whole, and the same command with a
random number of processes gives the bytes of the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report

_CHILD = """
import os, sys
from pathlib import Path
from mechprobe.cli import main
notes = Path(sys.argv[1])
(notes / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
try:
    code = main(sys.argv[2:])
except SystemExit as end:
    code = end.code
(notes / f"code-{os.environ['RANK']}").write_text(str(code))
sys.exit(code)
"""
_PASSING = ("seconds", "environment", "digest")
"""Keys of a manifest that differ from time to time."""
_PATIENCE = 900.0
"""Seconds after which a command counts as hanging."""


_SMALL = "{skill={n=12}, max_new_tokens=24, batch_size=4}"
_SWEPT = f'sweep.benchmarks={{"standin:ifeval"={_SMALL}, "standin:mmlu_pro"={_SMALL}}}'


@dataclass(frozen=True)
class Case:
    """A stage that processes divide.

    Attributes:
        stage: The command.
        folders: The folders of a run that it writes.
        options: Options besides ``--run``.
        exact: Whether any number of processes gives the same bytes. Otherwise the reference is made by as many as are killed.
    """

    stage: str
    folders: tuple[str, ...]
    options: tuple[str, ...] = ()
    exact: bool = True


CASES = (
    Case("localize", ("localize",)),
    Case("cache", ("cache",)),
    Case("train-sae", ("crosscoder",), ("--set", "train_sae.checkpoint_every=3"), exact=False),
    Case("features", ("features",)),
    Case("evaluate", ("evals",)),
    Case("select", ("selection",)),
    Case("intervene", ("interventions",)),
    Case("drift", ("drift",), ("--set", "drift.batch_tokens=512")),
    Case("logprobs", ("logprobs",), ("--set", "logprobs.batch_tokens=512")),
    Case("sweep", ("sweep", "benchmarks"), ("--set", _SWEPT)),
)


@dataclass
class Ended:
    """How a command ended: whether it was killed before its end, exit codes by process (None: it wrote none), its sentences."""

    killed: bool
    seconds: float
    codes: dict[int, str | None]
    sentences: list[str]
    text: str = field(repr=False, default="")


def contents(run: Path, case: Case, *, whole: bool = True) -> dict[str, object]:
    """The files of a stage by path; ``whole`` includes manifests, without what differs from time to time."""
    found: dict[str, object] = {}
    for folder in case.folders:
        for path in sorted(path for path in (run / folder).rglob("*") if path.is_file()):
            name = str(path.relative_to(run))
            if path.name != "manifest.json":
                found[name] = path.read_bytes()
            elif whole:
                found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key not in _PASSING}
    return found


def start(notes: Path, arguments: Sequence[str], processes: int) -> subprocess.Popen[str]:
    """Start a command: torchrun with several processes, or one process alone."""
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    (script := notes / "child.py").write_text(_CHILD)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path.cwd())}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
    launched = [*launcher, "--master-port", port, "--"] if processes > 1 else []
    command = [sys.executable, *launched, str(script), str(notes), *arguments]
    alone = {} if processes > 1 else {"RANK": "0"}
    output = (notes / "output").open("w")
    return subprocess.Popen(command, env=environment | alone, stdout=subprocess.DEVNULL, stderr=output, text=True)


def run(notes: Path, arguments: Sequence[str], processes: int, kill: tuple[int, float] | None = None) -> Ended:
    """Run a command to its end; ``kill`` names a process and the seconds from its start to SIGKILL."""
    began, process = time.monotonic(), start(notes, arguments, processes)
    killed = False
    if kill is not None:
        place = notes / f"pid-{kill[0]}"
        while not (place.is_file() and place.read_text()) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(kill[1])
        if process.poll() is None and not (notes / f"code-{kill[0]}").is_file():
            os.kill(int(place.read_text()), signal.SIGKILL)
            killed = True
    try:
        process.wait(_PATIENCE)
    finally:
        if process.poll() is None:
            process.terminate()
    codes = {
        index: path.read_text() if (path := notes / f"code-{index}").is_file() else None for index in range(processes)
    }
    text = (notes / "output").read_text(errors="replace")
    said = [line for line in text.splitlines() if line.startswith("mechprobe: ")]
    return Ended(killed, time.monotonic() - began, codes, said, text)


def prepared(run_folder: Path, scratch: Path, case: Case) -> Path:
    """A copy of the run without the stage."""
    copy = scratch / "run"
    shutil.rmtree(copy, ignore_errors=True)
    left_out = shutil.ignore_patterns(*case.folders)
    shutil.copytree(
        run_folder, copy, ignore=lambda place, names: left_out(place, names) if Path(place) == run_folder else set()
    )
    return copy


class Trial:
    """One case in its copy of the run, with its reference and its duration in several processes."""

    def __init__(self, case: Case, run_folder: Path, scratch: Path, processes: int) -> None:
        self.case, self.source, self.scratch, self.processes = case, run_folder, scratch / case.stage, processes
        copy = self._fresh()
        self._must_succeed(1 if case.exact else processes)
        self.reference = contents(copy, case)
        self._fresh()
        self.seconds = self._must_succeed(processes).seconds
        self.equal = contents(copy, case) == self.reference

    def _fresh(self) -> Path:
        return prepared(self.source, self.scratch, self.case)

    @property
    def _arguments(self) -> list[str]:
        return [self.case.stage, "--run", str(self.scratch / "run"), *self.case.options]

    def _must_succeed(self, processes: int) -> Ended:
        ended = run(self.scratch / "notes", self._arguments, processes)
        if set(ended.codes.values()) != {"0"}:
            raise SystemExit(f"{self.case.stage} with {processes} processes failed: {ended}\n{ended.text[-3000:]}")
        return ended

    def kill(self, victim: int, share: float, then: int) -> dict[str, object]:
        """Kill a process when ``share`` of the duration is over, resume with ``then`` processes, and say what was seen."""
        copy = self._fresh()
        ended = run(self.scratch / "notes", self._arguments, self.processes, (victim, share * self.seconds))
        left = contents(copy, self.case, whole=False)
        torn = [name for name, data in left.items() if name in self.reference and data != self.reference[name]]
        others = {index: code for index, code in ended.codes.items() if index != victim}
        row: dict[str, object] = {
            "stage": self.case.stage, "victim": victim, "at": round(share, 3), "killed": ended.killed, "others": others,
            "sentences": ended.sentences, "torn": torn, "left": len(left), "resumed with": then,
        }  # fmt: skip
        resumed = run(self.scratch / "notes", self._arguments, then)
        row["resumed"] = set(resumed.codes.values()) == {"0"}
        row["equal"] = contents(copy, self.case) == self.reference or not (self.case.exact or then == self.processes)
        row["good"] = bool(row["resumed"] and row["equal"] and not torn) and (
            not ended.killed or (set(others.values()) == {"2"} and len(ended.sentences) == 1)
        )
        if not row["good"]:
            row["text"] = ended.text[-4000:] + resumed.text[-2000:]
        return row


def main() -> None:
    """Kill, compare and print a line for every kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="A finished run; it is copied and not changed.")
    parser.add_argument("--scratch", type=Path, default=Path("runs/kills"), help="Folder for the copies.")
    parser.add_argument("--stages", nargs="*", default=[case.stage for case in CASES], help="Stages to kill.")
    parser.add_argument("--kills", type=int, default=10, help="Number of kills.")
    parser.add_argument("--processes", type=int, default=2, help="Processes of the command that is killed.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of stages, processes and moments.")
    add_shared_options(parser, out=RESULTS / "kills_cpu.json", rounds=1)
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    drawn, rows = random.Random(arguments.seed), list[dict[str, object]]()
    cases = [case for case in CASES if case.stage in arguments.stages]
    trials: dict[str, Trial] = {}
    while sum(bool(row["killed"]) for row in rows) < arguments.kills:
        case = cases[len(rows) % len(cases)]
        if case.stage not in trials:
            trials[case.stage] = Trial(case, arguments.run, arguments.scratch, arguments.processes)
        trial = trials[case.stage]
        victim, share, then = (
            drawn.randrange(arguments.processes),
            drawn.random(),
            drawn.choice((1, arguments.processes)),
        )
        rows.append(
            {**trial.kill(victim, share, then), "seconds": round(trial.seconds, 1), "undisturbed equal": trial.equal}
        )
        print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    write_report(arguments, what="kills", began=began, packages=("torch",), body={"kills": rows})


if __name__ == "__main__":
    main()
