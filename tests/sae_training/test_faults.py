"""A process that fails alone, anywhere in a divided training or stage, ends the others within seconds, and one says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One process, which has loaded the libraries, forks two for each case. `main` of the command line ends them as a command.
SCRIPT = """
import errno, json, os, random, signal, socket, sys, time
from pathlib import Path
import torch, torch._dynamo, torch.distributed
from mechprobe import launcher, ranks as mp_ranks
from mechprobe.cli import ending
from mechprobe.errors import InputError
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, evaluate, train
import sae_training.checkpoint as checkpoint, sae_training.run as run, sae_training.trainer as trainer, sae_training.reconstruction as reconstruction
from sae_training.parallel import Division

torch.set_num_threads(1)
BATCHES = list(torch.randn(12, 16, 2, 8, generator=torch.Generator().manual_seed(1)))
TRAINED = []
ERRORS = {"memory": lambda: MemoryError("injected"), "user": lambda: InputError("injected input."),
          "disk": lambda: OSError(errno.ENOSPC, "No space left on device", "a file"),
          "killed": lambda: os.kill(os.getpid(), signal.SIGKILL), "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP)}
PLACES = {"step": (trainer.Trainer, "_gradients"), "end of step": (trainer.Trainer, "_count"), "set_up": (trainer.Trainer, "_gain"),
          "checkpoint": (checkpoint, "write_tensors"), "log": (run._Run, "_log"), "evaluate": (reconstruction, "squared_norms"), "none": (run, "train")}

def break_(place, kind, at):
    owner, name = PLACES[place]
    old, calls = getattr(owner, name), [0]
    def broken(*given, **more):
        calls[0] += place != "evaluate" or bool(TRAINED)
        if calls[0] > at:
            if (error := ERRORS[kind]()) is not None:
                raise error
        return old(*given, **more)
    setattr(owner, name, broken)

def training(out, division):
    config = CrosscoderConfig(n_models=2, d_model=8, d_sae=20, k=3, variant="batchtopk")
    crosscoder = Crosscoder(config, division.latents(20))
    schedule = TrainConfig(n_tokens=192, batch_size=16, checkpoint_every=3, log_every=2)
    train(crosscoder, BATCHES, schedule, out=out, division=division)
    TRAINED.append(1)
    with division.agreeing():
        return evaluate(crosscoder, BATCHES[:4], division=division)

def item(number):
    if number == FAILING:
        raise ERRORS[KIND]()
    return number

def stage(case, rank):
    global FAILING, KIND
    FAILING, KIND = (case["at"] * 2 + case["rank"] if case["place"] == "item" else -1), case["kind"]
    for number in mp_ranks.in_turns(item, range(10)):
        if case["place"] == "outside" and number == 3 and rank == case["rank"]:
            raise ERRORS[KIND]()

def command(case, rank):
    def body(_):
        with launcher.ranks_of_environment(divides=True) as ranks:
            if case["way"] == "stage":
                stage(case, rank)
            else:
                if rank == case["rank"] and case["place"] in PLACES:
                    break_(case["place"], case["kind"], case["at"])
                training(Path(case["out"]), Division(ranks, case["way"], ranks.tensor_group("cpu")) if ranks.count > 1 else Division())
        return 0
    launcher.expect_end()
    if case["kind"] == "stopped":
        launcher.LATE = mp_ranks.LATE = 2.0
    ending._run = body
    return ending.main([])

def forked(case, n, said):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids, codes, began = [], {}, time.monotonic()
    for rank in range(n):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            code = 1
            try:
                code = command(case, rank)
            except SystemExit as end:
                code = end.code
            except BaseException:
                import traceback; traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    while len(codes) < n and time.monotonic() - began < 40:
        for rank, pid in enumerate(pids):
            if rank not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        if case["kind"] == "stopped" and 1 - case["rank"] in codes:
            break
        time.sleep(0.01)
    for rank, pid in enumerate(pids):
        if rank not in codes:
            os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); codes[rank] = "did not end"
    text = said.read_text() if said.exists() else ""
    return {"codes": [codes[rank] for rank in range(n)], "seconds": time.monotonic() - began, "text": text}

root = Path(sys.argv[1])
for number, case in enumerate(json.loads(sys.argv[2])):
    case["out"] = str(root / f"{number}")
    found = {"case": case, "first": forked(case, 2, root / f"said {number}")}
    if case["way"] != "stage":
        found["again"] = forked({**case, "place": "nowhere", "kind": "no"}, case["then"], root / f"said again {number}")
    print(json.dumps(found), flush=True)
"""
SAID = {
    "memory": "memory ran out",
    "user": "injected input.",
    "disk": "the disk is full",
    "killed": "Another process of this command has ended",
    "stopped": "Another process of this command has ended",
}


def case(way: str, place: str, kind: str, rank: int, at: int, then: int = 1) -> dict[str, Any]:
    """What fails: the ``at``-th call of a function, in a process; ``then`` processes resume."""
    return {"way": way, "place": place, "kind": kind, "rank": rank, "at": at, "then": then}


FAST = [
    case("latents", "step", "memory", 0, 5, 2),
    case("tokens", "end of step", "user", 1, 7),
    case("tokens", "set_up", "disk", 0, 0),
    case("latents", "checkpoint", "disk", 1, 2),
    case("latents", "evaluate", "memory", 1, 1),
    case("stage", "item", "memory", 1, 2),
    case("stage", "outside", "user", 0, 0),
    case("latents", "step", "killed", 0, 3),
    case("tokens", "step", "stopped", 1, 3),
]
SLOW = [
    case(way, place, kind, rank, at, 1 + (rank + at) % 2)
    for way in ("latents", "tokens")
    for place, at in (("step", 2), ("end of step", 9), ("set_up", 0), ("checkpoint", 1), ("evaluate", 0))
    for kind in ("memory", "user", "disk")
    for rank in (0, 1)
] + [
    case("stage", place, kind, rank, 1)
    for place in ("item", "outside")
    for kind in ("memory", "user", "disk")
    for rank in (0, 1)
]


def check(folder: Path, cases: list[dict[str, Any]]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(cases)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    done = subprocess.run(command, env=env, cwd=folder, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(cases)
    for row in rows:
        failed, rank, kind = row["first"], row["case"]["rank"], row["case"]["kind"]
        own = {"killed": -9, "stopped": "did not end"}.get(kind, 2)
        assert failed["codes"] == [own if index == rank else 2 for index in range(2)], row
        said = failed["text"].splitlines()
        assert len(said) == 1, row
        assert SAID[kind] in said[0], row
        assert failed["seconds"] < 30, row
        if "again" in row:
            assert row["again"]["codes"] == [0] * row["case"]["then"], row
            assert row["again"]["text"] == "", row


def test_a_process_that_fails_alone_ends_all(tmp_path: Path) -> None:
    check(tmp_path, FAST)


@pytest.mark.slow
def test_a_process_that_fails_alone_anywhere_ends_all(tmp_path: Path) -> None:
    check(tmp_path, SLOW)
