"""``mechprobe weights`` from the lab's checkpoints to its tables; resumed, refused, and without a model in memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.drift.weights import stage as weights_stage
from mechprobe.errors import ArtifactError, MechprobeError
from mechprobe.files import dump_json

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / "artifacts" / "lab" / "shared-marker"
STEP = LAB / "checkpoints"
MODELS = {
    "base": LAB / "base", "rl@step_000012": STEP / "rl" / "step_000012", "rl@step_000040": STEP / "rl" / "step_000040",
    "rl": LAB / "rl", "sft": LAB / "sft",
}  # fmt: skip
OPTIONS = ["--models", *(f"{name}={path}" for name, path in MODELS.items())]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished weights stage over checkpoints of the lab."""
    run = tmp_path_factory.mktemp("weights") / "run"
    assert main(["weights", *OPTIONS, "--run", str(run)]) == 0
    return run


def test_the_command_prints_the_main_numbers_last(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    assert main(["weights", "--run", str(lab)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    at = next(i for i, line in enumerate(lines) if line.startswith("model "))
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == ["rl@step_000012", "rl@step_000040", "rl", "sft"]
    assert "n = 656,256 parameters in 30 weights" in lines[at + 5]
    assert f"Written to {lab / 'weights'}" in lines[-1]
    assert before == {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    assert not (lab / "weights" / "parts").exists()


def test_the_lab_moves_less_under_rl_than_under_sft(lab: Path) -> None:
    found = mp.drift.WeightsResult.load(lab / "weights")
    size = {name: found.models[name].total.relative_norm for name in found.names}
    assert size["rl@step_000012"] < size["rl@step_000040"] < size["rl"] < size["sft"]
    for name in found.names:
        total = found.models[name].total
        assert total.spectral["stable_rank"].value < 0.2 * total.spectral["stable_rank"].low
        assert total.spectral["inside"].value > 5 * total.spectral["inside"].high
    late = next(pair for pair in found.pairs if (pair.first, pair.second) == ("rl@step_000040", "rl"))
    far = next(pair for pair in found.pairs if (pair.first, pair.second) == ("rl", "sft"))
    assert late.cosine > 0.9 > far.cosine > 10 * far.cosine_null
    assert late.overlap["right"].value > far.overlap["right"].value > far.overlap["right"].high
    frozen = next(group for group in found.models["rl"].types if group.type == "embed")
    assert (frozen.norm, frozen.unchanged, frozen.n_matrices, frozen.spectral) == (0.0, 1.0, 0, {})
    table = found.to_pandas()
    assert len(table) == 4 * 30
    assert table[table["type"] == "embed"]["stable_rank"].isna().all()
    assert str(lab) in repr(found)


def test_a_dry_run_writes_nothing_and_tells_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", *OPTIONS, "--run", str(tmp_path / "r"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "base 1.31 MB" in said
    assert "singular values of 23 matrices exact, of 0" in said
    assert "minutes" in said
    assert main(["weights", *OPTIONS, "--run", str(tmp_path / "r"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == 656_256
    assert plan["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_json_holds_the_result(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "--run", str(lab), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(lab / "weights")
    assert printed["models"]["sft"]["total"]["n"] == 656_256
    stored = json.loads((lab / "weights" / "weights.json").read_text())
    assert {key: value for key, value in printed.items() if key != "folder"} == stored


def test_interrupted_and_resumed_it_gives_the_same_bytes(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, measure = [], weights_stage.measure

    def until_the_tenth(name: str, *rest: object) -> object:
        if len(measured) == 10:
            raise KeyboardInterrupt
        measured.append(name)
        return measure(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(weights_stage, "measure", until_the_tenth)
    assert main(["weights", *OPTIONS, "--out", str(tmp_path / "w")]) == 130
    assert len(list((tmp_path / "w" / "parts").iterdir())) == 10
    monkeypatch.setattr(weights_stage, "measure", lambda name, *rest: measured.append(name) or measure(name, *rest))
    assert main(["weights", *OPTIONS, "--out", str(tmp_path / "w")]) == 0
    assert len(measured) == len(set(measured)) == 30
    for file in ("weights.json", "weights.parquet", "pairs.parquet"):
        assert (tmp_path / "w" / file).read_bytes() == (lab / "weights" / file).read_bytes()


def test_other_models_and_settings_are_refused(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "--run", str(lab), "--set", "weights.top_k=8"]) == 2
    assert "top_k: 16 in the folder, 8 now" in capsys.readouterr().err
    assert main(["weights", "--run", str(lab), "--set", "weights.top_k=0"]) == 2
    assert "top_k = 0 is not accepted" in capsys.readouterr().err


def test_a_bad_model_is_one_sentence_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(LAB / "rl", tmp_path / "rl")
    file = tmp_path / "rl" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert (
        main(["weights", "--models", f"base={LAB / 'base'}", f"rl={tmp_path / 'rl'}", "--run", str(tmp_path / "r")])
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Model rl:" in error
    assert "is not a readable safetensors file" in error
    assert not (tmp_path / "r").exists()


def test_a_folder_of_another_stage_is_refused(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        mp.drift.WeightsResult.load(tmp_path / "none")
    with pytest.raises(MechprobeError, match="is not empty"):
        mp.drift.weight_statistics({name: MODELS[name] for name in ("base", "rl")}, out=lab)


def test_no_model_and_no_transformers_is_loaded(tmp_path: Path) -> None:
    code = f"""
import sys, mechprobe as mp
found = mp.drift.weight_statistics({{"base": {str(LAB / "base")!r}, "rl": {str(LAB / "rl")!r}}}, out={str(tmp_path / "w")!r})
assert found.models["rl"].total.n == 656256
sys.exit(any(name.startswith(("transformers.models.llama", "peft")) for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_same_seed_gives_the_same_nulls_and_another_seed_others(tmp_path: Path) -> None:
    models = {name: MODELS[name] for name in ("base", "rl")}
    found = [
        mp.drift.weight_statistics(models, out=tmp_path / str(place), config=mp.drift.WeightsConfig(seed=seed))
        for place, seed in enumerate((0, 0, 1))
    ]
    assert dump_json(found[0].to_dict()) == dump_json(found[1].to_dict())
    a, b = (each.models["rl"].total.spectral["stable_rank"] for each in (found[0], found[2]))
    assert a.value == b.value
    assert a.null != b.null
    np.testing.assert_allclose(a.null, b.null, rtol=0.05)
