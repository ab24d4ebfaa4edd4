"""Responses of a real local server, ``transformers serve``, on the models of the lab."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from mechprobe.evals.config import EvaluateConfig, SamplingConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.stage import JOURNAL_FILE, evaluate_outcomes
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.stage_folder import read_manifest

pytest.importorskip("fastapi", reason="transformers serve needs the extra [serve]")

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / "artifacts" / "lab" / "shared-marker"
MODELS = {name: str(LAB / name) for name in ("base", "rl")}


class Served(NamedTuple):
    url: str
    log: Path

    def n_requests(self) -> int:
        return self.log.read_text().count("POST /v1/completions")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        *options,
        "--attn-implementation",
        "eager",
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield Served(f"http://127.0.0.1:{port}/v1", log)
        finally:
            process.terminate()
            process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"transformers serve did not start: {log.read_text()[-2000:]}")


def endpoint(served: Served, **settings: object) -> EvaluateConfig:
    return EvaluateConfig(generation="endpoint", endpoint={"base_url": served.url, "models": MODELS}, **settings)  # type: ignore[arg-type]


def lab_tasks(n: int) -> list[Task]:
    return load_tasks(LAB / "tasks.jsonl", scorer_spec="final:ANS", max_new_tokens=48, n_per_task=n)


def differences(here: Outcomes, there: Outcomes) -> list[str]:
    """Samples whose responses differ, with both responses, for the message of a failed test."""
    pairs = zip(here.records, there.records, strict=True)
    return [f"{a.model} {a.sample_id}: {a.response!r} here, {b.response!r} there" for a, b in pairs if a != b]


def test_greedy_responses_equal_those_of_transformers_here(served: Served, tmp_path: Path) -> None:
    family, tasks = ModelFamily.load(MODELS), lab_tasks(5)
    here = evaluate_outcomes(family, tasks, tmp_path / "here", EvaluateConfig(force_prefix="THINK"))
    there = evaluate_outcomes(family, tasks, tmp_path / "there", endpoint(served, force_prefix="THINK"))
    assert len(there.records) == 3 * sum(len(task.samples) for task in tasks)
    assert not differences(here, there)
    engine = EvaluationSummary.load(tmp_path / "there" / "summary.json").engine
    assert engine is not None
    assert (engine.name, engine.prompt_as, engine.base_url) == ("transformers serve", "text", served.url)
    assert engine.n_tokenized == len(there.records)
    assert read_manifest(tmp_path / "there")["results"]["engine"]["models"] == MODELS
    n = served.n_requests()
    evaluate_outcomes(family, tasks, tmp_path / "there", endpoint(served, force_prefix="THINK"))
    assert served.n_requests() == n


def test_draws_are_sampled_and_repeatable(served: Served, tmp_path: Path) -> None:
    family = ModelFamily.load({"rl": MODELS["rl"]})
    sampling = SamplingConfig(n=1, temperature=1.5, seed=3)
    tasks = [replace(task, sampling=sampling) for task in lab_tasks(3)]
    config = EvaluateConfig(
        generation="endpoint", endpoint={"base_url": served.url, "models": {"rl": MODELS["rl"]}}, base="rl"
    )  # type: ignore[arg-type]
    greedy = evaluate_outcomes(family, lab_tasks(3), tmp_path / "greedy", config)
    first = evaluate_outcomes(family, tasks, tmp_path / "first", config)
    again = evaluate_outcomes(family, tasks, tmp_path / "again", config)
    assert differences(greedy, first)
    assert not differences(first, again)


@pytest.mark.slow
def test_at_least_99_percent_of_the_lab(served: Served, tmp_path: Path) -> None:
    family, tasks = ModelFamily.load(MODELS), lab_tasks(100)
    here = evaluate_outcomes(family, tasks, tmp_path / "here")
    there = evaluate_outcomes(family, tasks, tmp_path / "there", endpoint(served))
    found = differences(here, there)
    print("\n".join(found) or "no differences")  # noqa: T201 - shown with -s, and where the test fails
    assert len(found) <= 0.01 * len(here.records), found


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_nothing_is_asked_twice(served: Served, tmp_path: Path) -> None:
    run, n = tmp_path / "run", 40 * 2 * len(lab_tasks(1))
    settings = {
        "evaluate.generation": "endpoint",
        "evaluate.n_per_task": 40,
        "evaluate.endpoint.base_url": served.url,
        "evaluate.endpoint.models": "{" + ", ".join(f'{name} = "{path}"' for name, path in MODELS.items()) + "}",
        "tasks.scorer": "final:ANS",
        "tasks.max_new_tokens": 48,
    }
    models = [f"{name}={path}" for name, path in MODELS.items()]
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [
        sys.executable, "-m", "mechprobe", "evaluate", "--models", *models, "--tasks", str(LAB / "tasks.jsonl"),
        "--run", str(run), *options,
    ]  # fmt: skip
    before = served.n_requests()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = run / "evals" / JOURNAL_FILE
    while process.poll() is None and (not journal.is_file() or len(journal.read_bytes().splitlines()) < n // 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_kept = journal.read_bytes().count(b"\n") - 1
    assert 0 < n_kept < n
    time.sleep(2)  # the server finishes what it was asked
    asked_first = served.n_requests() - before
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert served.n_requests() - before - asked_first == n - n_kept
    keys = [(row["model"], row["sample_id"]) for row in map(json.loads, (run / "evals" / "outcomes.jsonl").open())]
    assert len(keys) == len(set(keys)) == n
    assert not journal.is_file()
