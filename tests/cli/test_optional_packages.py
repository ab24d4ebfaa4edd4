"""Without the heavy packages that only parts of mechprobe need, everything else works; a missing one is one sentence.

Each test runs in a process of its own, in which the packages cannot be imported.
"""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.gpu_check.lab import TINY
from mechprobe.lab.summary import shipped

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "datasets",
    "accelerate",
    "matplotlib",
    "sae_lens",
    "transformer_lens",
    "trl",
    "lm_eval",
    "math_verify",
    "peft",
)
"""Packages without which a whole run must work."""
BLOCK = """
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        found = super().find_distributions(*context)
        return (one for one in found if (one.name or "").lower().replace("-", "_") not in {names!r})

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""
CALL = "from mechprobe.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def python(program: str, *words: str, without: tuple[str, ...] = PARTS) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-c", BLOCK.format(names=set(without)) + program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small run of the lab without the packages."""
    folder = tmp_path_factory.mktemp("bare")
    prompts = folder / "prompts.jsonl"
    with (shipped("shared-marker") / "prompts.jsonl").open() as lines:
        prompts.write_text("".join(islice(lines, 200)))
    return folder / "run", python(CALL, "run", "--out", folder / "run", "--set", *TINY, f"prompts.file={prompts}")


def test_a_run_needs_none_of_them_and_says_what_it_left_out(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["figures"] == []
    assert "<figure" not in (folder / "report" / "index.html").read_text()
    said = " ".join(done.stderr.split())
    assert said.count("The plain reader is used without a comparison of its bits with the bridge.") == 1
    assert "TransformerBridge needs the package transformer-lens" in said
    assert "A figure needs the package matplotlib" in said
    assert "The report is written without figures." in said
    cache = json.loads((folder / "cache" / "manifest.json").read_text())["results"]["forward"]
    assert all(found["reader"] == ["plain"] and not found["proof"] for found in cache.values())


def test_every_public_name_imports_without_any_of_them() -> None:
    program = (
        "import mechprobe, sae_training\nfor m in (mechprobe, sae_training):\n    [getattr(m, n) for n in dir(m)]\n"
    )
    # The client of inference servers needs httpx2, which some releases of huggingface_hub need, too.
    program += "assert not {'pandas', 'matplotlib', 'mechprobe.evals.rollouts.client'} & set(sys.modules)\n"
    done = python(program, without=(*PARTS, "pandas", "pyarrow"))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("words", "missing", "sentence"),
    [
        (["run", "--out", "OUT"], "pandas", "The feature table needs the package pandas, which cannot be imported"),
        (["emergence", "--run", "OUT", "--models", "base=x"], "matplotlib", "The report of an emergence stage needs the package"),
        (["cache", "--out", "OUT", "--set", "prompts.file=hub:a/b"], "datasets", "Datasets require the package datasets"),
        (["cache", "--out", "OUT", "--set", "device_map=auto"], "accelerate", "A device_map needs the package accelerate"),
        (["baselines", "--run", "RUN"], "sae_lens", "An SAE baseline needs the package sae-lens"),
        (["crosscoder", "export", "RUN/crosscoder", "--model", "rl", "--out", "OUT"], "sae_lens", "The export of a slice needs the package sae-lens"),
    ],
)  # fmt: skip
def test_a_missing_package_is_one_sentence_and_nothing_is_written(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
    words: list[str],
    missing: str,
    sentence: str,
) -> None:
    places = {"OUT": str(tmp_path / "out"), "RUN": str(finished[0])}
    filled = [word.replace("OUT", places["OUT"]).replace("RUN", places["RUN"]) for word in words]
    done = python(CALL, *filled, without=(missing,))
    said = " ".join(done.stderr.split())
    assert (done.returncode, sentence in said) == (2, True), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_names_them_and_does_not_fail() -> None:
    done = python(CALL, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for name, part in (
        ("transformer-lens", "the comparison"),
        ("sae-lens", "SAE baselines"),
        ("matplotlib", "figures"),
    ):
        assert any(name in line and part in line for line in done.stdout.splitlines()), done.stdout
