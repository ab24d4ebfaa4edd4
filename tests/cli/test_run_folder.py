"""A run folder is safe: refused runs leave its settings, overrides reach every stage, paths hold from anywhere."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mechprobe.cli import main
from mechprobe.cli.shared_options import Shared
from mechprobe.errors import ArtifactError
from mechprobe.files import write_json
from mechprobe.pipeline.run import Run
from mechprobe.pipeline.upstream import _other_dtype
from mechprobe.run_config import RUN_FILE, RunConfig, write_run_file

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "artifacts" / "lab" / "shared-marker" / "run.toml"
TINY = ["localize.n_per_task=2", "localize.sites=['resid_post.2']", "evaluate.n_per_task=8"]


def test_a_refused_run_leaves_the_folders_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    assert main(["run", "--out", str(out), "--until", "localize", "--set", *TINY]) == 0
    before = (out / RUN_FILE).read_bytes()
    assert main(["run", "--out", str(out), "--until", "localize", "--set", *TINY, "localize.n_per_task=3"]) == 2
    assert (out / RUN_FILE).read_bytes() == before
    assert "2 in the folder, 3 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lab", "folder", "model"),
    [
        ("shared-marker", "runs/lab", "shared-marker/rl"),
        ("own-markers", "runs/own-markers", "own-markers/rl"),
        ("mechanisms", "runs/mechanisms", "mechanisms/rl"),
        ("mechanisms-null", "runs/mechanisms-null", "mechanisms/null"),
    ],
)
def test_every_lab_has_a_run_folder_of_its_own(
    lab: str, folder: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Shared(lab=lab).start()
    assert run.folder == Path(folder)
    assert run.config.models["rl"] == str(LAB.parents[1] / model)
    assert Shared(lab=lab, run=Path("mine")).start().folder == Path("mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lab", "mechanism"], "--lab 'mechanism' is unknown; the labs are shared-marker, own-markers, mechanisms,"),
        (["--lab", "../x"], "--lab '../x' is unknown"),
        (["--lab", ""], "--lab '' is unknown"),
        (["--lab", "mechanisms", "--config", "run.toml"], "--lab names models, tasks and prompts"),
        (["--lab", "mechanisms", "--models", "base=a"], "--lab names models, tasks and prompts"),
    ],
)
def test_a_lab_that_cannot_be_meant_is_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_overrides_reach_every_stage_of_a_kept_run(tmp_path: Path) -> None:
    settings = RunConfig.build(LAB, ["seed=1"])
    write_run_file(tmp_path, settings.given)
    again = RunConfig.build(None, ["tuned=sft"], seed=7, start=json.loads((tmp_path / RUN_FILE).read_text()))
    assert again.seed == again.select.seed == again.intervene.seed == again.cache.seed == 7
    assert again.select.tuned == again.intervene.tuned == again.localize.tuned == "sft"
    assert RunConfig.of_run(tmp_path) == settings
    assert list(RunConfig.of_run(tmp_path).models) == list(settings.models) == ["base", "sft", "rl"], (
        "the order of outcomes"
    )


def test_paths_are_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(LAB.parent)
    from_file = RunConfig.build(Path("run.toml"))
    given = RunConfig.build(None, models={"base": "base", "hub": "org/name"})
    monkeypatch.chdir(tmp_path)
    assert all(Path(path).is_absolute() for path in from_file.models.values())
    assert Path(from_file.tasks.file).is_file()
    assert Path(from_file.prompts.file).is_file()
    assert Path(given.models["base"]).is_absolute()
    assert given.models["hub"] == "org/name"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cache.sites=['resid_post.9']", "resid_post.0 to resid_post.2"),
        ("near=['base','foo']", "has no model 'foo'"),
        ("intervene.features=topp", "cannot be read"),
        ("intervene.edits_base=['clamp']", "clamp:<number>"),
        ("evaluate.n_per_task=0", "n_per_task = 0"),
        ("localize.n_per_task=-1", "n_per_task = -1"),
        ("device=foo", "Device 'foo'"),
    ],
)
def test_what_can_be_found_wrong_is_found_before_any_work(
    tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "r"), "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_force_never_empties_another_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["localize", "--config", str(LAB), "--out", str(tmp_path / "l"), "--set", *TINY]
    assert main(call) == 0
    before = {path.name for path in (tmp_path / "l").iterdir()}
    other = [
        "evaluate",
        "--config",
        str(LAB),
        "--out",
        str(tmp_path / "l"),
        "--force",
        "--set",
        "evaluate.n_per_task=2",
    ]
    assert main(other) == 2
    assert "holds the stage 'localize', not 'evaluate'" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "l").iterdir()} == before


def test_a_run_file_of_another_shape(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("[]")
    with pytest.raises(ArtifactError, match=RUN_FILE):
        RunConfig.of_run(tmp_path)


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    call = ["run", "--out", str(tmp_path / "r"), "--until", "localize"]
    call += ["--set", "localize.n_per_task=16", "localize.sites=['resid_post.2']"]
    command = [sys.executable, "-m", "mechprobe", *call]
    heeds = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heeds
    )
    unfinished = tmp_path / "r" / "localize" / "unfinished.json"
    deadline = time.monotonic() + 90
    while not unfinished.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert main(call) == 0


STAGES = (
    "run",
    "localize",
    "cache",
    "train-sae",
    "features",
    "evaluate",
    "select",
    "intervene",
    "emergence",
    "baselines",
)


def test_every_stage_command_has_the_same_shared_options() -> None:
    from dataclasses import fields

    import typer.main

    from mechprobe.cli.app import app
    from mechprobe.cli.shared_options import Shared

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [*(each.name for each in fields(Shared)), "log_json"]
    shown = {name: [(p.name, p.help) for p in commands[name].params[-len(names) :]] for name in STAGES}
    assert [name for name, _ in shown["run"]] == names
    assert all(options == shown["run"] for options in shown.values())


def test_missing_stages_are_made_first_and_finished_ones_are_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    small = [
        "--set",
        "cache.max_prompts=40",
        "cache.responses=[]",
        "train_sae.d_sae=32",
        "train_sae.n_tokens=2048",
        *TINY,
    ]
    assert main(["train-sae", "--run", str(run), *small, "train_sae.k=4"]) == 0
    error = capsys.readouterr().err
    assert f"train-sae needs localize, cache in {run}" in error
    before = (run / "cache" / "manifest.json").stat().st_mtime_ns
    assert main(["train-sae", "--run", str(run), "--force", "--set", "train_sae.k=3"]) == 0
    assert "needs" not in capsys.readouterr().err
    assert (run / "cache" / "manifest.json").stat().st_mtime_ns == before
    kept = json.loads((run / RUN_FILE).read_text())
    assert kept["train_sae"]["k"] == 3
    assert kept["cache"]["max_prompts"] == 40
    assert main(["features", "--run", str(run), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []


@pytest.mark.parametrize(
    ("command", "needs"),
    [("train-sae", "cache"), ("features", "train-sae"), ("select", "evaluate"), ("intervene", "select")],
)
def test_without_upstream_a_command_names_the_one_to_run(
    tmp_path: Path, command: str, needs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--run", str(tmp_path / "r"), "--no-upstream"]) == 2
    assert f"run `mechprobe {needs} --run {tmp_path / 'r'}` first" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [name for name in STAGES if name not in ("run", "emergence")])
def test_a_dry_run_is_complete_json(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--run", str(tmp_path / "r"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stage"] == command
    assert plan["plan"]
    assert not (tmp_path / "r").exists()


def test_other_models_do_not_mix_with_the_default_run(
    tmp_path: Path, llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Path("runs/lab") / RUN_FILE, RunConfig.build(LAB).given)
    Path("prompts.jsonl").write_text('{"prompt": "12+3="}\n')
    models = [f"{name}={path}" for name, path in llama_family.items()]
    call = ["cache", "--models", *models, "--prompts", "prompts.jsonl", "--sites", "resid_post.1"]
    assert main(call) == 2
    assert "give --run FOLDER" in capsys.readouterr().err
    assert main([*call, "--run", "runs/mine"]) == 0
    assert RunConfig.of_run("runs/mine").models["rl"] == str(llama_family["rl"])


def test_an_out_that_cannot_be_made_fails_the_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for command in ("run", "localize", "cache", "evaluate"):
        assert main([command, "--run", str(tmp_path / "file" / "r"), "--dry-run"]) == 2
        assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small store and a crosscoder, made by one command with a seed of its own."""
    run = tmp_path_factory.mktemp("trained") / "r"
    small = [
        "cache.max_prompts=40",
        "cache.responses=[]",
        "train_sae.d_sae=32",
        "train_sae.n_tokens=2048",
        "train_sae.k=4",
    ]
    assert main(["train-sae", "--run", str(run), "--seed", "3", "--set", *small, *TINY]) == 0
    return run


def test_settings_of_stages_made_on_the_way_are_kept(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "r"))
    assert main(["train-sae", "--run", str(run)]) == 0
    assert main(["train-sae", "--run", str(run), "--seed", "4", "--force"]) == 0
    settings = RunConfig.of_run(run)
    assert (settings.seed, settings.cache.seed, settings.train_sae.seed) == (3, 3, 4)
    assert main(["train-sae", "--run", str(run)]) == 0


def test_a_stage_made_from_an_earlier_version_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "r"))
    assert main(["cache", "--run", str(run), "--force", "--max-prompts", "30"]) == 0
    capsys.readouterr()
    main(["features", "--run", str(run), "--set", "features.ce_samples=4"])
    assert f"{run / 'crosscoder'} was made from another cache" in capsys.readouterr().err


def test_models_in_another_dtype_than_the_store_are_named(trained: Path) -> None:
    for dtype, expected in (
        ("float32", []),
        ("bfloat16", ["base, rl, sft in float32, and select runs them in bfloat16"]),
    ):
        run = Run(RunConfig.build(None, [f"dtype={dtype}"], start=RunConfig.of_run(trained).given), trained)
        found = _other_dtype(run, "select")
        assert len(found) == len(expected)
        assert all(part in line for part, line in zip(expected, found, strict=True))
        assert _other_dtype(run, "evaluate") == []


def test_the_next_command_works(
    tmp_path: Path, llama_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "a", "task": "t", "prompt": "1+1=", "answer": "2"}\n')
    models = ["--models", *(f"{name}={path}" for name, path in llama_family.items())]
    run, sampled = tmp_path / "r", ["--set", "tasks.sampling.n=2", "tasks.sampling.temperature=1", "--seed", "5"]
    sampled[3:3] = ["tasks.max_new_tokens=8"]
    call = ["evaluate", "--run", str(run), *models, "--tasks", str(tasks), *sampled]
    assert main([*call, "--out", str(tmp_path / "e")]) == 0
    said = capsys.readouterr().out
    assert f"Next: mechprobe select --run {run} (it reads {run / 'evals'}, not this folder)" in said
    assert f"with the same --config, --models and --set, because {run} holds no settings" in said
    assert main([*call, "--out", str(run / "evals")]) == 0  # its own place, so the run folder keeps the settings
    assert capsys.readouterr().out.endswith(f"Next: mechprobe select --run {run}\n")
    kept = RunConfig.of_run(run)
    assert (kept.tasks.sampling.n, kept.tasks.sampling.seed, set(kept.models)) == (2, 5, set(llama_family))
    assert main(["evaluate", "--run", str(run), "--seed", "6", "--force"]) == 0
    assert RunConfig.of_run(run).tasks.sampling.seed == 6


def test_a_run_folder_takes_no_other_models_and_no_guess(
    trained: Path, tmp_path: Path, llama_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "r"))
    others = [f"{name}={path}" for name, path in llama_family.items()]
    before = sorted(path.name for path in run.iterdir())
    assert main(["evaluate", "--run", str(run), "--models", *others]) == 2
    assert "give --run FOLDER" in capsys.readouterr().err
    (run / RUN_FILE).unlink()
    assert main(["features", "--run", str(run)]) == 2
    assert "give --config FILE" in capsys.readouterr().err
    assert sorted([*(path.name for path in run.iterdir()), RUN_FILE]) == before


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--device", "foo"], "'foo'"),
        (["--features", "nonsense"], "nonsense"),
        (["--set", "prompts.file=gone.jsonl"], "gone.jsonl"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_mistakes_are_found_before_missing_stages_are_made(
    tmp_path: Path, options: list[str], fact: str, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["intervene", "--run", str(tmp_path / "r"), *options, *dry]) == 2
    assert fact in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
