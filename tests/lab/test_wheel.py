"""The wheel: what it holds, and that it works from an empty folder without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("mechprobe", "sae_training", "artifacts/lab/shared-marker", "artifacts/lab/mechanisms")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because a build leaves its folder behind."""
    place = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(REPOSITORY / name, place / "source" / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run([sys.executable, "-c", code, str(place)], place / "source")
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel, which is all that an installation of pure Python does."""
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def run(command: list[str], folder: Path, packages: Path | None = None) -> str:
    """Run a command in a folder and return what it prints; only ``packages`` precedes the installed libraries."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_stubs_templates_and_two_labs_without_checkpoints(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {name.removeprefix("mechprobe/lab/shipped/") for name in names if "/shipped/" in name}
    for lab, more in (("shared-marker", ()), ("mechanisms", ("null.toml", "null/model.safetensors"))):
        wanted = {"run.toml", "tasks.jsonl", "prompts.jsonl", "manifest.json", *more}
        wanted |= {f"{model}/model.safetensors" for model in ("base", "sft", "rl")}
        assert {f"{lab}/{name}" for name in wanted} <= files
    assert not any("/checkpoints/" in name or "own-markers" in name for name in names)
    shown = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "mechprobe" / "report").rglob("*.*")
        if path.suffix != ".pyc"
    }
    assert {"mechprobe/__init__.pyi", "sae_training/__init__.pyi"} | shown <= names
    assert wheel.stat().st_size <= 14 * 10**6


def test_lab_info_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    printed = run([sys.executable, "-m", "mechprobe", "lab", "info"], tmp_path, installed)
    assert str(installed / "mechprobe" / "lab" / "shipped" / "shared-marker" / "run.toml") in printed


@pytest.mark.slow
def test_the_dry_run_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    printed = run([sys.executable, "-m", "mechprobe", "run", "--dry-run"], tmp_path, installed)
    assert str(installed / "mechprobe" / "lab" / "shipped" / "shared-marker" / "base") in printed
    assert not list(tmp_path.iterdir())
