"""Kill one of the processes that divide a stage, at random moments, and compare what is made afterwards with one process alone.

    head -60 artifacts/lab/shared-marker/prompts.jsonl > few.jsonl
    mechprobe run --out tiny --until intervene --set prompts.file=few.jsonl localize.n_per_task=2 cache.max_prompts=24 \
      cache.shard_rows=256 train_sae.d_sae=64 train_sae.k=8 train_sae.n_tokens=8192 train_sae.batch_size=512 \
      features.ce_samples=8 features.gate.min_fve=0.0 features.gate.min_ce_recovered=-9.0 evaluate.n_per_task=12 \
      evaluate.batch_size=4 select.n_controls=2 select.min_gained=1 select.rule=top:6 intervene.features=top:6 \
      intervene.n_random=1 intervene.n_shuffled=1 intervene.n_per_task=2 intervene.doses=[] intervene.sizes=[] \
      intervene.workers=1 intervene.compare=[]
    python -m benchmarks.kills --run tiny --kills 20

For every stage a copy of the run without it is made. One process alone gives the reference. ``--processes`` processes, which
this script starts and ends as torchrun does, give the duration, and the same bytes. Each kill draws a stage, a process and a moment, sends SIGKILL, and checks: the
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
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Loaded here once; every process of a command is a copy of this one.
import transformers.models.llama.modeling_llama  # noqa: F401

import mechprobe.pipeline.run  # noqa: F401
from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from mechprobe import cli

_PASSING = ("seconds", "environment", "digest")
"""Keys of a manifest that differ from time to time."""
_PATIENCE = 900.0
"""Seconds after which a command counts as hanging."""
_GRACE = 30.0
"""Seconds from SIGTERM to SIGKILL."""


_SWEPT = 'sweep.benchmarks={"standin:math500"={skill={n=12, rendering="compact"}, max_new_tokens=24, batch_size=4}}'


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
    Case("train-sae", ("crosscoder",), ("--set", "train_sae.training.checkpoint_every=3"), exact=False),
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
    """How a command ended: whether a process was killed, exit codes by process (negative: the signal), its sentences."""

    killed: bool
    seconds: float
    codes: dict[int, int]
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


def run(notes: Path, arguments: Sequence[str], processes: int, kill: tuple[int, float] | None = None) -> Ended:
    """Run a command to its end; ``kill`` names a process and the seconds from its start to SIGKILL.

    As torchrun does, the others get SIGTERM when one has ended in another way than with exit code 0, and SIGKILL 30 seconds later.
    """
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        together = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
            "WORLD_SIZE": str(processes),
        }
    began, pids = time.monotonic(), dict[int, int]()
    for index in range(processes):
        pids[_forked(notes / "output", arguments, {**together, "RANK": str(index), "LOCAL_RANK": str(index)})] = index
    codes, killed, told = dict[int, int](), False, 0.0
    while len(codes) < processes:
        for pid, index in pids.items():
            if index not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[index] = os.waitstatus_to_exitcode(found[1])
        now, left = time.monotonic(), [pid for pid, index in pids.items() if index not in codes]
        if kill is not None and not killed and now - began > kill[1] and kill[0] not in codes:
            os.kill(next(pid for pid, index in pids.items() if index == kill[0]), signal.SIGKILL)
            killed = True
        if any(codes.values()) and not told:
            told = now
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        if now - (told + _GRACE if told else began + _PATIENCE) > 0:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    text = (notes / "output").read_text(errors="replace")
    said = [line for line in text.splitlines() if line.startswith("mechprobe: ")]
    return Ended(killed, time.monotonic() - began, codes, said, text)


def _forked(output: Path, arguments: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in a copy of this process, which has loaded the libraries; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code: object = 1
    try:
        os.environ.update(environment)
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = cli.main(list(arguments))
    except SystemExit as end:
        code = end.code
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


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
        if any(ended.codes.values()):
            raise SystemExit(f"{self.case.stage} with {processes} processes failed: {ended}\n{ended.text[-3000:]}")
        return ended

    def kill(self, victim: int, share: float, then: int) -> dict[str, object]:
        """Kill a process when ``share`` of the duration is over, resume with ``then`` processes, and say what was seen."""
        copy = self._fresh()
        ended = run(self.scratch / "notes", self._arguments, self.processes, (victim, share * self.seconds))
        left = contents(copy, self.case, whole=False)
        # a log of a training grows under its final name
        torn = [
            name
            for name, data in left.items()
            if (whole := self.reference.get(name, data)) != data
            and not (
                name.endswith("metrics.jsonl")
                and isinstance(whole, bytes)
                and isinstance(data, bytes)
                and whole.startswith(data)
            )
        ]
        others = {index: code for index, code in ended.codes.items() if index != victim}
        row: dict[str, object] = {
            "stage": self.case.stage, "victim": victim, "at": round(share, 3), "killed": ended.killed, "others": others,
            "sentences": ended.sentences, "torn": torn, "left": len(left), "resumed with": then,
        }  # fmt: skip
        resumed = run(self.scratch / "notes", self._arguments, then)
        row["resumed"] = not any(resumed.codes.values())
        row["equal"] = contents(copy, self.case) == self.reference or not (self.case.exact or then == self.processes)
        row["good"] = bool(row["resumed"] and row["equal"] and not torn) and (
            not ended.killed or (set(others.values()) == {2} and len(ended.sentences) == 1)
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
    arguments.run = arguments.run.name  # the result names no place of this machine
    write_report(arguments, what="kills", began=began, packages=("torch",), body={"kills": rows})


if __name__ == "__main__":
    main()
