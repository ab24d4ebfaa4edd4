"""The longest silence of every command: with a pipe as stderr, and with a terminal.

    python -m benchmarks.silence --run COPY_OF_A_FINISHED_RUN --out artifacts/benchmarks/silence_cpu.json

Every command runs as a process of its own in a folder with the lab's models, and makes its stage again (``--force``). The script
notes when its stderr, or the terminal, gets bytes. The longest gap between two times includes the start and the end. With
``--every 0.5 --lines`` the lines come more often and are printed, which shows what work has no name yet.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report

_START = "import sys; import mechprobe.progress.display as d; d.LOG_SECONDS = {every}; from mechprobe.cli import main; sys.exit(main())"
_LAB = Path("artifacts/lab/shared-marker")


@dataclass(frozen=True)
class Heard:
    """When a command said something, in seconds from its start, and what."""

    times: list[float]
    seconds: float
    code: int
    text: str

    @property
    def first(self) -> float:
        """Time of the first bytes; the whole time where there are none."""
        return self.times[0] if self.times else self.seconds

    @property
    def longest(self) -> float:
        """The longest time without bytes."""
        points = [0.0, *self.times, self.seconds]
        return max(after - before for before, after in pairwise(points))


def listen(command: Sequence[str], *, terminal: bool, stamped: bool = False) -> Heard:
    """Run a command and note when its stderr gets bytes; stdout is thrown away unless there is a terminal, which gets both."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    started = time.monotonic()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writer if terminal else subprocess.DEVNULL,
        stderr=writer,
        env=environment,
    )
    os.close(writer)
    times, parts = list[float](), list[bytes]()
    while True:
        if not select.select([reader], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            found = os.read(reader, 65536)
        except OSError:  # Linux ends a terminal so
            break
        if not found:
            break
        times.append(time.monotonic() - started)
        parts.append(b"[%6.2f] " % times[-1] + found if stamped else found)
    code = process.wait()
    os.close(reader)
    return Heard(times, time.monotonic() - started, code, b"".join(parts).decode(errors="replace"))


def commands(run: Path, scratch: Path) -> dict[str, list[str]]:
    """Every command that can take long, by name; each makes its stage again, and small where size does not matter."""
    at, checkpoints = ["--run", str(run)], str(_LAB / "checkpoints")
    force = [*at, "--force"]
    prompts = ["--base", str(_LAB / "base"), "--prompts", str(scratch / "arm.jsonl"), "--scorer", "final:ANS"]
    arm = [*prompts, "--set", "epochs=1", "--set", "max_new_tokens=32"]
    return {
        "doctor": ["doctor"],
        "doctor --config": ["doctor", "--config", str(_LAB / "run.toml")],
        "run --dry-run": ["run", "--run", str(scratch / "new"), "--dry-run"],
        "localize": ["localize", *force],
        "cache --dry-run": ["cache", "--run", str(scratch / "new"), "--dry-run"],
        "cache": ["cache", *force],
        "train-sae": ["train-sae", *force],
        "features": ["features", *force],
        "features --null": ["features", *at, "--null", "identical"],
        "evaluate": ["evaluate", *force],
        "select": ["select", *force],
        "intervene": ["intervene", *force],
        "report": ["report", *at],
        "show --verbose": ["show", str(run), "--verbose"],
        "emergence": ["emergence", *force, "--set", "emergence.pairs=false"],
        "sweep": ["sweep", *force, "--checkpoints", checkpoints],
        "drift": ["drift", *force, "--checkpoints", checkpoints],
        "dynamics": ["dynamics", *force],
        "logprobs": ["logprobs", *force, "--checkpoints", checkpoints],
        "probe": ["probe", *force],
        "baselines": ["baselines", *force],
        "weights": ["weights", *force],
        "posttrain sft": ["posttrain", "sft", *arm, "--out", str(scratch / "arms")],
        "posttrain grpo": ["posttrain", "grpo", *arm, "--out", str(scratch / "arms")],
        "store verify": ["store", "verify", str(run / "cache")],
        "store export": ["store", "export", str(run / "cache"), "--out", str(scratch / "export.safetensors")],
        "crosscoder export": ["crosscoder", "export", str(run / "crosscoder"), "--model", "rl", "--out", str(scratch / "sae")],
        "skills make": ["skills", "make", "--out", str(scratch / "skills"), "--n", "40"],
        "skills card": ["skills", "card"],
        "lab build": ["lab", "build", "--out", str(scratch / "lab"), "--scale", "small"],
    }  # fmt: skip


def main() -> None:
    """Measure the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="A copy of a finished run; its stages are made again.")
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/silence"), help="Folder for what commands write elsewhere."
    )
    parser.add_argument("--only", nargs="*", help="Names of commands.")
    parser.add_argument("--terminal", action="store_true", help="Give the commands a terminal instead of a pipe.")
    parser.add_argument("--every", type=float, default=5.0, help="Seconds between two lines.")
    parser.add_argument("--lines", action="store_true", help="Print what the commands say.")
    add_shared_options(parser, out=RESULTS / "silence_cpu.json", rounds=1)
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    arguments.scratch.mkdir(parents=True)
    (arguments.scratch / "arm.jsonl").write_text("".join(arm_prompts()), encoding="utf-8")
    start = [sys.executable, "-c", _START.format(every=arguments.every)]
    rows: list[dict[str, object]] = []
    for name, command in commands(arguments.run, arguments.scratch).items():
        if arguments.only and name not in arguments.only:
            continue
        heard = listen([*start, *command], terminal=arguments.terminal, stamped=arguments.lines)
        rows.append({
            "command": name, "seconds": round(heard.seconds, 1), "first": round(heard.first, 2),
            "longest": round(heard.longest, 2), "code": heard.code,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        if arguments.lines or heard.code:
            print(heard.text, flush=True)
    write_report(arguments, what="silence", began=began, packages=("torch", "rich"), body={"commands": rows})


def arm_prompts() -> list[str]:
    """Prompts with answers and responses, from the tasks and prompts of the lab."""
    tasks = [json.loads(line) for line in (_LAB / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[:64]]
    return [
        json.dumps({"id": t["id"], "prompt": t["prompt"], "answer": t["answer"], "response": f"ANS {t['answer']}"})
        + "\n"
        for t in tasks
    ]


if __name__ == "__main__":
    main()
