"""Stages that two processes divide give the bytes of one: own forward passes (drift), cells (sweep), batches (evaluate, logprobs)."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
import mechprobe as mp
from mechprobe.dynamics.logprobs.stage import log_probs
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import load_tasks
from mechprobe.launcher import ranks_of_command
from mechprobe.sweep.stage import sweep


def make(family, given, out):
    tasks = load_tasks(given / "tasks.jsonl", max_new_tokens=6)
    sampled = {"file": str(given / "tasks.jsonl"), "max_new_tokens": 4, "sampling": {"n": 2, "temperature": 1.0}}
    finished = {"results": {name: str(given / f"{name}.json") for name in ("base", "rl")}}
    evaluate_outcomes(family, tasks, out / "evals", mp.EvaluateConfig(batch_size=4))
    config = mp.drift.DriftConfig(positions=40, lens_texts=4, draws=100, top=3, batch_tokens=96)
    mp.drift.divergence(family, given / "cache", out=out / "drift", config=config)
    sweep(family, {"sums": sampled, "finished": finished}, out=out / "sweep", work=out / "cells")
    log_probs(family, out / "evals", out=out / "logprobs", config=mp.dynamics.LogprobsConfig(batch_tokens=64))


if __name__ == "__main__":
    given, out, *paths = sys.argv[1:]
    with ranks_of_command("evaluate"):
        make(mp.ModelFamily.load(dict(path.split("=", 1) for path in paths)), Path(given), Path(out))
"""


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder; of manifests, what does not depend on time and place."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        manifest = json.loads(path.read_text()) if path.name == "manifest.json" else {}
        for key in ("seconds", "environment", "digest"):
            manifest.pop(key, None)
        found[str(path.relative_to(folder))] = manifest or path.read_bytes()
    return found


def finished_results(path: Path, value: float) -> None:
    """A results file of lm-evaluation-harness."""
    shot = {"arc": 0}
    path.write_text(
        json.dumps({
            "results": {"arc": {"acc,none": value, "acc_stderr,none": 0.01}}, "n-samples": {"arc": {"original": 9, "effective": 9}},
            "configs": {"arc": {"task": "arc"}}, "n-shot": shot, "versions": {"arc": 1}, "lm_eval_version": "0.4", "config": {},
            "higher_is_better": {"arc": {"acc": True}},
        })
    )  # fmt: skip


def test_two_processes_give_the_bytes_of_one(llama_family: dict[str, Path], tmp_path: Path) -> None:
    import mechprobe as mp

    given, script = tmp_path / "given", tmp_path / "script.py"
    given.mkdir()
    script.write_text(SCRIPT)
    lines = [{"id": f"q{i}", "task": "sums", "prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(10)]
    (given / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, value in (("base", 0.25), ("rl", 0.5)):
        finished_results(given / f"{name}.json", value)
    paths = {name: llama_family[name] for name in ("base", "rl")}
    family = mp.ModelFamily.load(paths)
    settings = mp.CacheConfig(responses=("base@1.0", "rl@1.0"), max_new_tokens=8, held_out_frac=0.2)
    mp.cache_activations(family, [line["prompt"] for line in lines], ["resid_post.1"], given / "cache", settings)
    runpy.run_path(str(script))["make"](family, given, tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    env = {**os.environ, **together, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(given), str(tmp_path / "two"), *(f"{n}={p}" for n, p in paths.items())]
    started = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert [name for name in one if one[name] != two.get(name)] == []
    assert set(one) == set(two)
    assert len([name for name in one if name.startswith("cells/")]) > 5
