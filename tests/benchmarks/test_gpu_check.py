"""The GPU check: a step that crashes or hangs does not stop the rest, limits are kept, and the checks find planted faults."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tables
from benchmarks.gpu_check import carry, driver, family, kernels, lab, models, plan
from benchmarks.gpu_check.__main__ import options
from benchmarks.gpu_check.record import Record, relative_error
from benchmarks.random_store import build_store
from benchmarks.waits import count_waits
from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.dtypes import start_storing, to_stored
from mechprobe.models.load import LanguageModel
from sae_training.kernels import products

ROOT = Path(__file__).parents[2]


def record(path: Path) -> Record:
    return Record(path / "step.json", "cpu", tiny=True, seconds=60)


def arguments(out: Path, *words: str) -> argparse.Namespace:
    return options().parse_args(["--device", "cpu", "--size", "tiny", "--out", str(out), *words])


@pytest.fixture
def fake_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps that pass, fail, raise, die and hang; the driver starts them as it starts the real ones."""
    programs = {
        "passes": "record.check('a number', 0.1, 1.0); record.goal('never at tiny sizes', 0.0, 1.0)",
        "fails": "record.check('a number', 2.0, 1.0)",
        "raises": "record.put('before', 1); raise ValueError('why it broke')",
        "dies": "record.put('before', 2); import os; os.abort()",
        "hangs": "record.put('before', 3); import subprocess, time; subprocess.Popen(['sleep', '77']); time.sleep(77)",
        "last": "record.put('after', 4)",
    }
    package = tmp_path / "sitecustomize.py"
    lines = ["import sys, types"]
    for name, program in programs.items():
        lines += [f"m = types.ModuleType('benchmarks.gpu_check.{name}')"]
        lines += [f"exec('def run(record): ' + {program!r}, m.__dict__)", "sys.modules[m.__name__] = m"]
    package.write_text("\n".join(lines))
    script = tmp_path / "run_step.py"
    script.write_text(
        "import argparse, sys, runpy\nfrom pathlib import Path\nfrom benchmarks.gpu_check import driver\n"
        "p = argparse.ArgumentParser()\n"
        "for name in ('device', 'size', 'step'): p.add_argument('--' + name)\n"
        "p.add_argument('--out', type=Path); p.add_argument('--seconds', type=float)\n"
        "sys.exit(driver.run_step(p.parse_args()))\n"
    )
    steps = tuple(plan.Step(name, "", 1, 5, alone=name == "last") for name in programs)
    monkeypatch.setattr(driver, "STEPS", steps)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    original = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if command[1:3] == ["-m", "benchmarks.gpu_check"]:
            command = [sys.executable, str(script), *command[3:]]
        return original(command, **options)

    monkeypatch.setattr(driver.subprocess, "Popen", start)
    return tmp_path / "out"


def test_no_step_stops_the_others_and_each_keeps_what_it_found(
    fake_steps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "_TINY_LIMIT_S", 12)
    assert driver.run_all(arguments(fake_steps)) == 1
    report = json.loads((fake_steps / "gpu_cpu.json").read_text())
    states = {name: step["state"] for name, step in report["steps"].items()}
    assert states == {
        "passes": "done", "fails": "failed", "raises": "failed", "dies": "crashed", "hangs": "out of time", "last": "done",
    }  # fmt: skip
    assert report["steps"]["passes"]["goals"] == []
    assert "why it broke" in report["steps"]["raises"]["error"]
    assert [report["steps"][name]["results"]["before"] for name in ("raises", "dies", "hangs")] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "NOT PASSED: fails, raises, dies, hangs" in printed
    assert "first: a number" in report["steps"]["fails"]["error"]
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert "sleep 77" not in running, "what a step started ends with it"


def test_a_step_without_enough_time_is_skipped_and_named(fake_steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.run_all(arguments(fake_steps, "--budget", "0")) == 1
    report = json.loads((fake_steps / "gpu_cpu.json").read_text())
    assert {step["state"] for step in report["steps"].values()} == {"skipped"}
    assert "last: skipped" in capsys.readouterr().out


def test_the_whole_plan_fits_into_the_budget() -> None:
    together = max(step.limit for step in plan.STEPS if not step.alone)
    assert together + sum(step.expected for step in plan.STEPS if step.alone) <= plan.BUDGET_S
    assert all(step.expected < step.limit for step in plan.STEPS)


def test_full_sizes_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, "--device cpu needs --size tiny: the full sizes take a GPU.")


def test_a_wrong_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    right = products.decode
    monkeypatch.setattr(products, "decode", lambda *args: right(*args) * 1.001)
    found = record(tmp_path)
    kernels.run(found)
    wrong = {check["name"].split(": ")[1] for check in found.checks if not check["ok"]}
    assert wrong == {"decode", "decode in two blocks"}


def test_relative_error_never_passes_what_is_not_finite() -> None:
    one = torch.tensor([1.0, 2.0])
    assert relative_error(one, one) == 0.0
    assert relative_error(torch.tensor([1.0, float("nan")]), one) == float("inf")


def test_logits_are_compared_up_to_the_first_other_token() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 3]])
    logits = torch.ones(2, 3, 4)
    other, changed = tokens.clone(), logits.clone()
    other[1, 1], changed[1, 2] = 9, 50.0  # everything behind another token differs
    assert models.agreement((other, changed), (tokens, logits)) == (0.5, 0.0)
    changed[1, 1] = 2.0
    assert models.agreement((other, changed), (tokens, logits))[1] > 0.1


def test_a_family_is_drawn_from_seeds(tmp_path: Path) -> None:
    one, two = (family.built_family(tmp_path / name, family.TINY_SHAPE, "cpu") for name in ("a", "b"))
    weights = {name: one[name].hf.get_input_embeddings().weight for name in one.names}
    assert torch.equal(weights["rl"], two["rl"].hf.get_input_embeddings().weight)
    assert not torch.equal(weights["base"], weights["rl"])
    assert len(set(one.fingerprints.values())) == 3
    assert isinstance(one["base"], LanguageModel)
    assert one["base"].attention == "eager"


def test_the_expected_verdicts_are_compared(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, str]]] = {"verdicts": [], "comparisons": []}
    for name, words in lab.expected().items():
        model, edit = name.removesuffix(", rivals").split()
        row = {"model": model, "edit": edit, "task": "pooled", "verdict": words[-1]}
        rows["comparisons" if name.endswith(", rivals") else "verdicts"].append(row)
    (tmp_path / "interventions").mkdir()
    results = tmp_path / "interventions" / "results.json"
    results.write_text(json.dumps(rows))
    assert lab.main([str(tmp_path)]) == 0
    for kind in rows:
        told = {**rows, kind: [{**rows[kind][0], "verdict": "another"}, *rows[kind][1:]]}
        results.write_text(json.dumps(told))
        assert lab.main([str(tmp_path)]) == 1
    results.write_text(json.dumps({**rows, "comparisons": []}))
    assert lab.main([str(tmp_path)]) == 1


def test_what_travels_is_listed_and_small_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert carry.main(["--wheels", str(tmp_path), "--no-download"]) == 1
    assert "lacks pydantic==" in capsys.readouterr().err
    for line in carry.missing(tmp_path):
        name, version = line.split("==")
        (tmp_path / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(b"0" * 2**19)
    assert carry.main(["--wheels", str(tmp_path), "--no-download"]) == 0
    assert "working tree" in capsys.readouterr().out
    (tmp_path / "large-1-py3-none-any.whl").touch()
    os.truncate(tmp_path / "large-1-py3-none-any.whl", 2**26)
    assert carry.main(["--wheels", str(tmp_path), "--no-download"]) == 1


def test_the_table_names_the_card_and_what_was_missed(tmp_path: Path) -> None:
    goal = {"name": "harvest, share of the bare forward", "found": 0.91, "at_least": 0.95, "met": False}
    check = {"name": "decode", "found": 1e-7, "at_most": 1e-5, "ok": True}
    step: dict[str, Any] = {"state": "done", "wall_seconds": 12.3, "checks": [check], "goals": [], "results": {}}
    rates = {"bfloat16_tflops": 700.0, "copy_gb_per_s": 3000.0}
    share = {"median": 0.91, "min": 0.9, "max": 0.92}
    harvest = {
        "ways": {"bare": {"tokens_per_s": 1e5, "share_of_bare": share}, "collect_plain": {"tokens_per_s": 9e4, "share_of_bare": share}},
        "tokens": {"rows": 50000, "longest": 300, "batches": 4},
        "peak_bytes": 2**34,
    }  # fmt: skip
    report = {
        "format": tables.FORMAT,
        "settings": {"quick": False},
        "machine": {"device": "Some GPU 80GB", "device_memory_gib": 79.6, "driver": "580.1", "cuda": "13.0"},
        "versions": {"torch": "2.11.0", "sae-lens": None},
        "seconds": 432.1,
        "steps": {
            "kernels": step,
            "card": {**step, "results": {"rates": rates}},
            "family": {**step, "goals": [goal], "results": {"harvest": harvest}},
            "training": {"state": "skipped", "error": "5 s of the budget were left"},
        },
    }
    (tmp_path / "gpu_some_gpu_80gb.json").write_text(json.dumps(report))
    text = tables.section("gpu", tmp_path)
    assert "| kernels | done | 1 of 1 | 12 |" in text
    assert "| training | skipped | – | – |" in text
    assert "| harvest, share of the bare forward | 0.91 | 0.95 | no |" in text
    assert "| collect_shard, rows on the host | 90,000 | 91% (90% to 92%) | 16.0 GiB |" in text
    assert "`artifacts/benchmarks/gpu_some_gpu_80gb.json`: Some GPU 80GB, 79.6 GiB, driver 580.1" in text


def test_what_waits_is_counted_and_nothing_else() -> None:
    one = torch.arange(6.0)
    with count_waits("cpu") as waits:
        two = one * 2 + one.sum()
        two[1:3].clone()
    assert waits.seen == []
    with count_waits("cpu") as waits:
        float(one.sum())
        one[one > 2]
        one.cpu()
        bool((one > 2).any())
        one.tolist()
    assert waits.seen == ["__float__", "index", "cpu", "__bool__", "tolist"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_waits_on_a_card_are_those_that_torch_reports() -> None:
    one = torch.arange(6.0, device="cuda")
    with count_waits("cuda") as waits:
        _ = one * 2
    assert waits.seen == []
    with count_waits("cuda") as waits:
        one.sum().item()
    assert len(waits.seen) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_that_a_card_sends_are_those_of_the_plain_path() -> None:
    values = torch.randn(33, 8, device="cuda")
    for dtype in ("float32", "bfloat16", "int8", "e4m3"):
        rows, fits = start_storing(values, dtype)()  # pyright: ignore[reportArgumentType]
        assert (rows == to_stored(values, dtype)).all()  # pyright: ignore[reportArgumentType]
        assert fits
    values[3, 4] = float("nan")
    for dtype in ("float32", "int8"):
        assert not start_storing(values, dtype)()[1]  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "e4m3"])
def test_batches_that_a_card_gets_are_those_of_the_host(tmp_path: Path, dtype: StoreDtype) -> None:
    store = build_store(tmp_path, 4096, 24, dtype)
    on_host = store.batches(300, 1, epochs=2, pool_rows=1000)
    on_card = store.batches(300, 1, epochs=2, pool_rows=1000).to("cuda")
    for one, other in zip(on_host, on_card, strict=True):
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())
