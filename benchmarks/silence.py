"""The longest silence of every command: with a pipe as stderr and stdout, and with a terminal.

    python -m benchmarks.silence --out artifacts/benchmarks/silence_cpu.json

Every command that can run long runs as a process of its own, on small inputs: first a whole run of the lab, then each stage of
it again (``--force``), and the commands around a run. With ``--run COPY`` the stages are those of a copy of a finished run, at
its size. The script notes when the pipe or the terminal gets bytes. The longest gap between two times includes the start and
the end. The events of the command (``--log-json``) say how true the remaining time was at the half of each work of ten seconds
or more. With ``--every 0.5 --lines`` the lines come more often and are printed, which shows what work has no name yet.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report

BAR_SECONDS = 10.0
"""No command is silent for longer."""
_START = "import sys; import mechprobe.progress.display as d; d.LOG_SECONDS = {every}; from mechprobe.cli import main; sys.exit(main())"
_LAB = Path("artifacts/lab/shared-marker")
_LONG_WORK = 10.0
NOT_RUN = {"skills score": "counts the outcomes of a file"}
"""Commands under the display of progress that are not run here, and why."""
_SMALL = [
    "localize.n_per_task=4", "cache.max_prompts=60", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480",
    "train_sae.batch_size=256", "features.ce_samples=8", "features.gate.min_fve=0.0", "features.gate.min_ce_recovered=-9.0",
    "evaluate.n_per_task=24", "evaluate.batch_size=16", "select.n_controls=2", "select.min_gained=2", "select.rule=top:10",
    "intervene.features=top:10", "intervene.n_random=2", "intervene.n_shuffled=1", "intervene.n_per_task=4",
    "intervene.doses=[]", "intervene.sizes=[2]", "intervene.workers=1", "intervene.max_new_tokens=24",
]  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """When a command said something, in seconds from its start, and what.

    Attributes:
        times: When bytes came.
        cpu: Processor seconds that the command had used at each of these times.
        seconds: How long the command ran.
        code: Its exit code.
        text: What it said.
    """

    times: list[float]
    cpu: list[float]
    seconds: float
    code: int
    text: str

    @property
    def first(self) -> float:
        """Time of the first bytes; the whole time where there are none."""
        return self.times[0] if self.times else self.seconds

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Length and beginning of every time without bytes."""
        return [(after - before, before) for before, after in pairwise([0.0, *self.times, self.seconds])]

    @property
    def longest(self) -> float:
        """The longest time without bytes."""
        return max(self.gaps)[0]

    @property
    def most_work(self) -> float:
        """Most processor seconds that the command used between two bytes, which other load does not lengthen."""
        return max((after - before for before, after in pairwise([0.0, *self.cpu])), default=0.0)


def listen(command: Sequence[str], *, terminal: bool, stamped: bool = False, interrupt_at: str = "") -> Heard:
    """Run a command and note when its stderr and stdout, which are one pipe or one terminal, get bytes.

    Once it has said ``interrupt_at``, it is interrupted as by Ctrl-C.
    """
    reader, writer = pty.openpty() if terminal else os.pipe()
    started = time.monotonic()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    times, cpu, parts = list[float](), list[float](), list[bytes]()
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
        cpu.append(_cpu_seconds(process.pid) or (cpu[-1] if cpu else 0.0))
        parts.append(b"[%6.2f] " % times[-1] + found if stamped else found)
        if interrupt_at and interrupt_at.encode() in b"".join(parts):
            process.send_signal(signal.SIGINT)
            interrupt_at = ""
    code = process.wait()
    os.close(reader)
    return Heard(times, cpu, time.monotonic() - started, code, b"".join(parts).decode(errors="replace"))


def _cpu_seconds(process: int) -> float:
    """Processor seconds of a process and its threads; 0 where /proc does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands(run: Path, scratch: Path, *, new: bool = False) -> dict[str, list[str]]:
    """Every command that can take long, by name; each makes its stage again, and small where size does not matter.

    Args:
        run: A finished run; with ``new`` the first command makes it.
        scratch: Folder for everything else.
        new: Whether the run is made here.
    """
    at, checkpoints = ["--run", str(run)], str(_LAB / "checkpoints")
    small = ["--set", *_SMALL, f"prompts.file={scratch / 'prompts.jsonl'}"]
    force = [*at, "--force"]
    arm = ["--base", str(_LAB / "base"), "--prompts", str(scratch / "arm.jsonl"), "--scorer", "final:ANS"]
    arm += ["--out", str(scratch / "arms"), "--set", "epochs=1", "--set", "max_new_tokens=32"]
    model = ["--model-config", str(_LAB / "base" / "config.json"), "--config", str(_LAB / "run.toml"), "--card", "H100"]
    return {
        "run": ["run", *at, *small] if new else ["run", "--run", str(scratch / "new"), "--dry-run"],
        "run --dictionary-seeds": ["run", *at, "--dictionary-seeds", "2"],
        "plan": ["plan", *model],
        "bench": ["bench", "--calibrate", "--out", str(scratch / "rates.json")],
        "doctor": ["doctor"],
        "doctor --measure": ["doctor", "--config", str(_LAB / "run.toml"), "--measure"],
        "localize": ["localize", *force],
        "cache --dry-run": ["cache", "--run", str(scratch / "new"), "--dry-run"],
        "cache": ["cache", *force],
        "train-sae": ["train-sae", *force],
        "features": ["features", *force],
        "features --null": ["features", *force, "--null", "identical"],
        "features --seeds": ["features", *force, "--seeds", "1"],
        "evaluate": ["evaluate", *force],
        "select": ["select", *force],
        "intervene": ["intervene", *force],
        "report": ["report", *at],
        "show": ["show", str(run), "--verbose"],
        "emergence": ["emergence", *force, "--set", "emergence.pairs=false", "--checkpoints", checkpoints],
        "sweep": ["sweep", *force, "--checkpoints", checkpoints],
        "drift": ["drift", *force, "--checkpoints", checkpoints],
        "dynamics": ["dynamics", *force],
        "logprobs": ["logprobs", *force, "--checkpoints", checkpoints],
        "probe": ["probe", *force],
        "baselines": ["baselines", *force],
        "weights": ["weights", *force],
        "report, all stages": ["report", *at],
        "posttrain sft": ["posttrain", "sft", *arm],
        "posttrain grpo": ["posttrain", "grpo", *arm],
        "store info": ["store", "info", str(run / "cache")],
        "store verify": ["store", "verify", str(run / "cache")],
        "store export": ["store", "export", str(run / "cache"), "--out", str(scratch / "export.safetensors")],
        "crosscoder export": ["crosscoder", "export", str(run / "crosscoder"), "--model", "rl", "--out", str(scratch / "sae")],
        "crosscoder import": [
            "crosscoder", "import", str(scratch / "cc_weights.pt"), "--cache", str(run / "cache"), "--scale", "1,1,1",
            "--out", str(scratch / "imported"),
        ],
        "skills make": ["skills", "make", "--out", str(scratch / "skills"), "--n", "40"],
        "skills show": ["skills", "show", "simulation", "mathematics"],
        "skills card": ["skills", "card", "--out", str(scratch / "card.md")],
        "lab build": ["lab", "build", "--out", str(scratch / "lab"), "--scale", "small"],
        "lab info": ["lab", "info"],
    }  # fmt: skip


def listen_to_all(
    run: Path | None, scratch: Path, arguments: argparse.Namespace, *, terminal: bool
) -> list[dict[str, Any]]:
    """Run the commands and describe each; prints a line for each."""
    scratch.mkdir(parents=True)
    _write_inputs(scratch)
    start = [sys.executable, "-c", _START.format(every=arguments.every)]
    rows = list[dict[str, Any]]()
    for name, command in commands(run or scratch / "run", scratch, new=run is None).items():
        if arguments.only and name not in arguments.only:
            continue
        log = scratch / "events" / f"{name.replace(' ', '_')}.jsonl"
        options = [] if name in ("show",) else ["--log-json", str(log)]
        heard = listen([*start, *command, *options], terminal=terminal, stamped=arguments.lines)
        rows.append(describe(name, heard, read_events(log)) | {"on": "terminal" if terminal else "pipe"})
        print(json.dumps(rows[-1]), flush=True)
        if arguments.lines or heard.code:
            print(heard.text, flush=True)
    return rows


def describe(name: str, heard: Heard, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table; ``within`` says whether no silence is longer than `BAR_SECONDS`."""
    length, begins = max(heard.gaps)
    return {
        "command": name,
        "seconds": round(heard.seconds, 1),
        "first": round(heard.first, 2),
        "longest": round(length, 2),
        "longest_begins": round(begins, 1),
        "most_processor_seconds": round(heard.most_work, 2),
        "within": length <= BAR_SECONDS,
        "code": heard.code,
        "remaining_at_half": remaining_at_half(events),
    }


def read_events(log: Path) -> list[dict[str, Any]]:
    """The events of a command."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def remaining_at_half(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each counted work of `_LONG_WORK` seconds or more: the remaining time that was said at its half, and that which came."""
    found, series = list[dict[str, Any]](), dict[tuple[str, str], list[Mapping[str, Any]]]()

    def close(key: tuple[str, str]) -> None:
        line = series.pop(key, [])
        whole = line[-1]["elapsed_s"] if line else 0.0
        if whole < _LONG_WORK:
            return
        half = next((each for each in line if each["elapsed_s"] >= whole / 2), line[-1])
        found.append({
            "work": " ".join(key).strip(), "seconds": round(whole, 1), "at": round(half["elapsed_s"], 1), "said": half["eta_s"],
            "came": round(whole - half["elapsed_s"], 1),
        })  # fmt: skip

    for event in events:
        key = (event["stage"] or "", event["task"] or "")
        if event["event"] not in ("progress", "finish") or event["total"] is None:
            continue
        if series.get(key) and event["elapsed_s"] < series[key][-1]["elapsed_s"]:
            close(key)
        series.setdefault(key, []).append(event)
    for key in list(series):
        close(key)
    return found


def main() -> None:
    """Measure the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, help="A copy of a finished run; its stages are made again. By default a small one."
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("runs/silence"),
        help="Folder for what commands write elsewhere; emptied first.",
    )
    parser.add_argument("--only", nargs="*", help="Names of commands.")
    parser.add_argument("--on", nargs="+", choices=("pipe", "terminal"), default=["pipe", "terminal"])
    parser.add_argument("--every", type=float, default=5.0, help="Seconds between two lines.")
    parser.add_argument("--lines", action="store_true", help="Print what the commands say.")
    add_shared_options(parser, out=RESULTS / "silence_cpu.json", rounds=1)
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    rows = [
        row
        for on in arguments.on
        for row in listen_to_all(arguments.run, arguments.scratch / on, arguments, terminal=on == "terminal")
    ]
    worst = max(rows, key=lambda row: row["longest"], default={"longest": 0.0, "command": "none", "on": ""})
    kept = all(row["within"] and not row["code"] for row in rows)
    print(
        f"longest silence {worst['longest']:.1f} s ({worst['command']}, {worst['on']}), bar {BAR_SECONDS:.0f} s: "
        f"{'kept' if kept else 'NOT kept'}"
    )
    body = {"bar_seconds": BAR_SECONDS, "kept": kept, "longest": worst["longest"], "commands": rows}
    write_report(arguments, what="silence", began=began, packages=("torch", "rich"), body=body)


def _write_inputs(scratch: Path) -> None:
    """The first prompts of the lab, prompts with answers and responses from its tasks, and a published crosscoder."""
    import torch

    with (_LAB / "prompts.jsonl").open(encoding="utf-8") as lines:
        (scratch / "prompts.jsonl").write_text("".join(islice(lines, 200)), encoding="utf-8")
    tasks = [json.loads(line) for line in (_LAB / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[:64]]
    arm = [
        {"id": t["id"], "prompt": t["prompt"], "answer": t["answer"], "response": f"ANS {t['answer']}"} for t in tasks
    ]
    (scratch / "arm.jsonl").write_text("".join(json.dumps(each) + "\n" for each in arm), encoding="utf-8")
    width = json.loads((_LAB / "base" / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    shapes = {"W_enc": (3, width, 256), "W_dec": (256, 3, width), "b_enc": (256,), "b_dec": (3, width)}
    draw = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    torch.save(tensors, scratch / "cc_weights.pt")
    (scratch / "cfg.json").write_text(
        json.dumps({"dict_size": 256, "d_in": width, "model_name": "lab"}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
