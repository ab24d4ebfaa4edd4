"""The features stage on a tiny family, from a store on disk to its folder, and its command."""

from pathlib import Path

import pytest
import torch

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.errors import ArtifactError, ModelError, SelectionError, SiteError, StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.stage import analyze_features, explain_features
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.files import read_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.stage_folder import read_manifest

CONFIG = FeaturesConfig(batch_rows=128, ce_samples=4, n_shown=2, n_examples=2)


def analyze(run: Path, out: Path, family: ModelFamily | None, config: FeaturesConfig = CONFIG) -> None:
    analyze_features(run / "crosscoder", run / "cache", out=out, family=family, config=config)


def test_the_stage_writes_all_and_is_then_skipped(run: Path, llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load(llama_family)
    analyze(run, tmp_path / "features", family)
    manifest = read_manifest(tmp_path / "features")
    files = {"table.parquet", "top_rows.parquet", "summary.json", "quality.json", "examples.json"}
    assert set(manifest["outputs"]) == files
    assert manifest["config"]["site"] == "resid_post.1"
    store = ActivationStore.open(run / "cache")
    assert manifest["counts"]["rows"] == store.n_rows
    assert manifest["counts"]["held_out_rows"] == int(store.in_split("held_out").sum())
    quality = read_json(tmp_path / "features" / "quality.json")
    for model in quality["models"].values():
        assert model["n_samples"] == 4
        assert model["targets"] == "response"
        assert model["ce_clean"] > 0
    for entry in read_json(tmp_path / "features" / "examples.json")["features"]:
        for example in entry["examples"]:
            sequence = store.sequence(example["sample"])
            assert example["row"] in sequence.rows
            assert len(example["tokens"]) <= len(sequence.rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    analyze(run, tmp_path / "features", family)
    analyze(run, tmp_path / "features", family, CONFIG.replace(ce_batch=1))  # changes no result
    with pytest.raises(ArtifactError, match=r"model_dtypes: null .*bfloat16"):
        analyze(run, tmp_path / "features", ModelFamily.load(llama_family, dtype="bfloat16"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == before


def test_a_model_is_loaded_for_its_clean_pass_and_for_all_the_rest(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = LanguageModel._load
    monkeypatch.setattr(LanguageModel, "_load", lambda self, *given: (loaded.append(self.name), load(self, *given))[1])
    analyze(run, tmp_path / "features", ModelFamily.load(llama_family))
    assert loaded == ["base", "base", "sft", "rl", "sft", "base"]  # first to look at its unembedding


def test_without_models_the_loss_is_left_out(run: Path, tmp_path: Path) -> None:
    analyze(run, tmp_path / "features", None)
    quality = read_json(tmp_path / "features" / "quality.json")
    assert "ce_recovered" not in quality["models"]["rl"]
    assert not (tmp_path / "features" / "examples.json").exists()


def test_a_failed_gate_is_in_the_manifest(run: Path, tmp_path: Path) -> None:
    strict = CONFIG.replace(gate={"min_fve": 1.0})
    analyze(run, tmp_path / "features", None, strict)
    results = read_manifest(tmp_path / "features")["results"]
    assert results["trusted"] is False
    assert len(results["failures"]) >= 3


def test_examples_of_chosen_features(run: Path, llama_family: dict[str, Path], tmp_path: Path) -> None:
    analyze(run, tmp_path / "features", None)
    alive = [k for k, dead in enumerate(FeatureTable.load(tmp_path / "features").dead) if not dead][:3]
    family = ModelFamily.load(llama_family)
    folders = {"crosscoder": run / "crosscoder", "cache": run / "cache", "features": tmp_path / "features"}
    out = explain_features(alive, **folders, family=family, out=tmp_path / "examples", config=CONFIG)
    found = read_json(out / "examples.json")["features"]
    assert [entry["feature"] for entry in found] == alive
    for entry in found:
        for example in entry["examples"]:
            peak = example["activations"]["joint"][example["peak"]]
            assert peak == max(example["activations"]["joint"]) > 0
            assert set("".join(example["tokens"])) <= set("0123456789+=")
        assert set(entry["promoted"]["models"]) == {"base", "sft", "rl"}
        assert len(entry["quantiles"]) == min(4, entry["n_active"])
    written = (out / "examples.json").read_bytes()
    twice = explain_features(alive, **folders, family=family, out=tmp_path / "twice", config=CONFIG)
    assert (twice / "examples.json").read_bytes() == written


def test_features_that_cannot_be_explained_leave_nothing_behind(
    run: Path, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    analyze(run, tmp_path / "features", None)
    family = ModelFamily.load(llama_family)
    folders = {"crosscoder": run / "crosscoder", "cache": run / "cache", "features": tmp_path / "features"}
    for chosen, named in (([48], "Feature 48"), ([3, 4, 3], "Feature 3")):
        with pytest.raises(SelectionError, match=named):
            explain_features(chosen, **folders, family=family, out=tmp_path / "examples", config=CONFIG)
    shuffled = dict(zip(llama_family, list(llama_family.values())[::-1], strict=True))
    with pytest.raises(StoreError, match="model"):
        explain_features([3], **folders, family=ModelFamily.load(shuffled), out=tmp_path / "examples", config=CONFIG)
    assert not (tmp_path / "examples").exists()


def test_an_unembedding_of_no_known_form_is_found_before_the_pass(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = ModelFamily.load(llama_family)
    family["base"].hf.model.norm = torch.nn.Tanh()
    monkeypatch.setattr("mechprobe.features.stage.feature_table", lambda *_: pytest.fail("the pass was begun"))
    with pytest.raises(ModelError, match="Tanh"):
        analyze(run, tmp_path / "features", family)


def test_a_site_that_is_not_there_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"resid_post\.1.* resid_post\.0"):
        analyze(run, tmp_path / "features", None, CONFIG.replace(site="resid_post.0"))
    assert not (tmp_path / "features").exists()


def test_a_folder_that_is_no_crosscoder_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        analyze_features(run / "nothing", run / "cache", out=tmp_path / "features", config=CONFIG)
    assert not (tmp_path / "features").exists()


def test_the_command_prints_the_main_numbers(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"{name}={path}" for name, path in llama_family.items()]
    stages = ["--crosscoder", str(run / "crosscoder"), "--cache", str(run / "cache")]
    arguments = ["features", *stages, "--out", str(tmp_path / "features")]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "features").exists()
    assert main([*arguments, "--models", *models]) == 0
    text = capsys.readouterr().out
    assert "CE recovered" in text
    assert "Gate:" in text
    assert "Features (n = 48;" in text
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert "No causal verdict yet" in capsys.readouterr().out
    assert (tmp_path / "report" / "index.html").is_file()


def test_mistakes_end_with_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "--crosscoder", str(tmp_path / "no"), "--cache", str(tmp_path / "no")]) == 2
    assert main(["report", "--run", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if "RAM" not in line and ": loading " not in line]  # progress of slow imports
    assert len(lines) == 2
    assert all(line.startswith("mechprobe: ") for line in lines)
