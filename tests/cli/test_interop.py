"""Baselines, import and export through the command line, on a tiny family; refusals are one sentence."""

import json
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.files import read_json
from mechprobe.models.family import ModelFamily
from mechprobe.records import write_jsonl
from mechprobe.stage_folder import read_manifest
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, evaluate, import_sae

NAMES = ("base", "sft", "rl")


@pytest.fixture(scope="module")
def run(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, a crosscoder, and baselines without the spliced loss."""
    folder = tmp_path_factory.mktemp("interop")
    prompts = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(10, 40) for b in (3, 17)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    store = cache_activations(
        ModelFamily.load(llama_family), folder / "prompts.jsonl", ["resid_post.1"], folder / "cache",
        CacheConfig(held_out_frac=0.2),
    )  # fmt: skip
    shape = CrosscoderConfig(n_models=3, d_model=32, d_sae=48, k=6, model_names=store.models)
    train_crosscoder(store, shape, TrainConfig(n_tokens=6000, batch_size=100, lr=1e-2), folder / "crosscoder")
    assert main([*baselines(folder), "--out", str(folder / "baselines")]) == 0
    return folder


def baselines(run: Path, crosscoder: str = "crosscoder") -> list[str]:
    return ["baselines", "--crosscoder", str(run / crosscoder), "--cache", str(run / "cache")]


def write_published(run: Path, path: Path) -> Crosscoder:
    """The run's own crosscoder in the format of crosscoder_learning, with its scales as that library has them."""
    own = Crosscoder.load(run / "crosscoder")
    tensors = {
        "encoder.weight": own.W_enc.detach().contiguous(),
        "encoder.bias": own.b_enc.detach(),
        "decoder.weight": own.W_dec.detach().transpose(0, 1).contiguous(),
        "decoder.bias": own.b_dec.detach().contiguous(),
        "code_normalization_id": torch.tensor(1),
        "k": torch.tensor(6),
        "threshold": own.threshold.float(),
        "activation_mean": torch.zeros(3, 32),
        "activation_std": torch.ones(3, 32),
        "activation_global_scale": 1 / own.scale,
    }
    torch.save(tensors, path)
    return own


def test_the_table_and_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_json(run / "baselines" / "baselines.json")
    store = ActivationStore.open(run / "cache")
    crosscoder = Crosscoder.load(run / "crosscoder")
    joint = evaluate(crosscoder, store.batches(512, split="held_out"))
    for name in NAMES:
        rows = found["models"][name]
        assert rows["crosscoder"]["fve"] == pytest.approx(joint.fve[name], abs=1e-6)
        assert rows["crosscoder"]["l0"] == pytest.approx(joint.l0)
        own = ActivationStore.open(run / "cache", models=(name,))
        sae = import_sae(run / "baselines" / name)
        metrics = sae.evaluate(batch[:, 0] for batch in own.batches(512, split="held_out"))
        assert rows["sae"]["fve"] == pytest.approx(metrics.fve, abs=1e-6)
        assert (rows["sae"]["l0"], rows["sae"]["dead_share"]) == pytest.approx((metrics.l0, metrics.dead_frac))
        assert rows["sae"]["fve"] > 0.5
        assert "ce_recovered" not in rows["sae"]
        assert (sae.d_sae, sae.metadata["hook_name"]) == (48, "blocks.1.hook_resid_post")
    manifest = read_manifest(run / "baselines")
    assert manifest["config"]["training"]["k"] == 6
    assert manifest["config"]["training"]["n_tokens"] == 6000
    assert manifest["config"]["batch_seed"] == 0
    before = {path: path.stat().st_mtime_ns for path in (run / "baselines").rglob("*.*")}
    assert main([*baselines(run), "--out", str(run / "baselines")]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    printed = capsys.readouterr().out
    assert "rl    own SAE" in printed
    assert "base  its slice, swap" in printed
    assert f"n = {found['held_out_rows']:,} tokens" in printed


def test_the_exported_slice_is_the_slice_of_the_table(run: Path, tmp_path: Path) -> None:
    store = ActivationStore.open(run / "cache")
    rows = read_json(run / "baselines" / "baselines.json")["models"]
    crosscoder = Crosscoder.load(run / "crosscoder")
    for readout in ("swap", "single"):
        out = tmp_path / readout
        call = [
            "crosscoder",
            "export",
            str(run / "crosscoder"),
            "--model",
            "rl",
            "--readout",
            readout,
            "--out",
            str(out),
        ]
        assert main(call) == 0
        sae = import_sae(out)
        x = store.rows(0, 64)
        with torch.no_grad():
            expected = Readout(readout).feature_acts(crosscoder, x, "rl")
            torch.testing.assert_close(sae.encode(x[:, 2]), expected, rtol=1e-4, atol=1e-4)
    metrics = import_sae(tmp_path / "swap").evaluate(batch[:, 2] for batch in store.batches(512, split="held_out"))
    assert metrics.fve == pytest.approx(rows["rl"]["slice"]["fve"], abs=1e-4)
    assert metrics.l0 == pytest.approx(rows["rl"]["slice"]["l0"], abs=0.05)


def test_with_models_the_spliced_loss_stands_in_the_table(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{name}={run / 'baselines' / name}" for name in NAMES]
    models = [f"{name}={path}" for name, path in llama_family.items()]
    call = [*baselines(run), "--sae", *given, "--models", *models, "--set", "features.ce_samples=4", "--json"]
    assert main([*call, "--out", str(tmp_path / "b")]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = read_json(run / "baselines" / "baselines.json")["models"]
    for name in NAMES:
        rows = found["models"][name]
        assert rows["sae"]["fve"] == pytest.approx(trained[name]["sae"]["fve"], abs=1e-9)
        assert rows["sae"]["ce_recovered"] <= 1.5
        assert rows["sae"]["n_predictions"] == rows["crosscoder"]["n_predictions"] > 0
    assert found["training"] is None
    assert read_manifest(tmp_path / "b")["counts"]["trained"] == 0
    assert main([*call, "--out", str(tmp_path / "b"), "--set", "dtype=bfloat16"]) == 2
    assert "config.model_dtypes: null in the folder" in capsys.readouterr().err


def test_an_interrupted_stage_keeps_the_finished_saes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.dictionary.baselines import stage as module

    train, done = module.train_sae_baseline, []

    def stopping(*arguments: object, **options: object) -> object:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_sae_baseline", stopping)
    call = [*baselines(run), "--out", str(tmp_path / "b")]
    assert main(call) == 130
    assert not (tmp_path / "b" / "manifest.json").exists()
    first = (tmp_path / "b" / "base" / "sae_weights.safetensors").stat().st_mtime_ns
    done.clear()
    assert main(call) == 0
    assert len(done) == 1
    assert (tmp_path / "b" / "base" / "sae_weights.safetensors").stat().st_mtime_ns == first
    for name in NAMES:
        file = Path(name) / "sae_weights.safetensors"
        assert (tmp_path / "b" / file).read_bytes() == (run / "baselines" / file).read_bytes()


def test_an_imported_crosscoder_serves_the_later_stages(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_published(run, tmp_path / "model_final.pt")
    call = ["crosscoder", "import", str(tmp_path / "model_final.pt"), "--cache", str(run / "cache")]
    assert main([*call, "--out", str(tmp_path / "imported")]) == 0
    printed = capsys.readouterr().out
    assert "crosscoder_learning: base, sft, rl → 48 features (batchtopk)" in printed
    assert "Missing: the tokens" in printed
    imported = Crosscoder.load(tmp_path / "imported")
    x = ActivationStore.open(run / "cache").rows(0, 200)
    torch.testing.assert_close(imported.encode(x), own.encode(x), rtol=1e-4, atol=1e-4)
    trained = read_json(run / "crosscoder" / "metrics.json")
    assert read_json(tmp_path / "imported" / "metrics.json")["fve"] == pytest.approx(trained["fve"], abs=1e-4)
    manifest = read_manifest(tmp_path / "imported")
    assert (manifest["stage"], manifest["config"]["site"]) == ("import-crosscoder", "resid_post.1")
    assert manifest["config"]["source"]["file"] == "model_final.pt"
    assert main([*call, "--out", str(tmp_path / "imported")]) == 0  # again: nothing to do
    stage = ["features", "--crosscoder", str(tmp_path / "imported"), "--cache", str(run / "cache")]
    assert main([*stage, "--out", str(tmp_path / "features")]) == 0
    assert read_manifest(tmp_path / "features")["counts"]["features"] == 48
    trains = [*baselines(run)[:1], "--crosscoder", str(tmp_path / "imported"), "--cache", str(run / "cache")]
    assert main([*trains, "--out", str(tmp_path / "b"), "--dry-run"]) == 2
    assert "baselines.n_tokens" in capsys.readouterr().err
    assert main([*trains, "--out", str(tmp_path / "b"), "--dry-run", "--set", "baselines.n_tokens=700"]) == 0
    assert "700 tokens each" in capsys.readouterr().out
    assert not (tmp_path / "b").exists()


def refused(capsys: pytest.CaptureFixture[str], out: Path, *call: object) -> str:
    capsys.readouterr()
    assert main([*map(str, call), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert not out.exists()
    return lines[0]


def test_imports_that_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", tmp_path / "m.pt"
    write_published(run, file)
    call = ["crosscoder", "import", file]
    assert "does not exist" in refused(capsys, out, "crosscoder", "import", tmp_path / "gone.pt")
    assert "n_models = 3" in refused(capsys, out, *call, "--names", "a,b")
    assert "write numbers with commas" in refused(capsys, out, *call, "--scale", "1;2")
    assert "leave scale out" in refused(capsys, out, *call, "--scale", "1,2,3")
    assert "is unknown" in refused(capsys, out, *call, "--format", "zip")
    cache = ["--cache", run / "cache"]
    assert "give --names in the file's order" in refused(capsys, out, *call, *cache, "--names", "a,b,c")
    assert "resid_post" in refused(capsys, out, *call, *cache, "--site", "resid_post.2")
    tensors = torch.load(file, weights_only=True)
    wide = {
        name: torch.cat([value] * 2, dim=1) if "encoder.weight" in name else value for name, value in tensors.items()
    }
    torch.save(wide, tmp_path / "wide.pt")
    assert "has shape [3, 48, 32]" in refused(capsys, out, "crosscoder", "import", tmp_path / "wide.pt", *cache)


def test_exports_that_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["crosscoder", "export", run / "crosscoder", "--model"]
    assert "did you mean 'base'" in refused(capsys, tmp_path / "o", *call, "bass")
    assert "--readout 'joint' is not possible" in refused(capsys, tmp_path / "o", *call, "rl", "--readout", "joint")
    assert main([*map(str, call), "rl", "--out", str(tmp_path)]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err


def test_baselines_that_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sae = tmp_path / "out", tmp_path / "sae"
    assert "write NAME=PATH" in refused(capsys, out, *baselines(run), "--sae", "somewhere")
    assert "base, sft, rl" in refused(capsys, out, *baselines(run), "--sae", f"rll={sae}")
    assert "SAE of sae-lens" in refused(capsys, out, *baselines(run), "--sae", f"rl={sae}")
    assert "did you mean 'n_tokens'" in refused(capsys, out, *baselines(run), "--set", "baselines.n_token=3")
    assert "k = 99" in refused(capsys, out, *baselines(run), "--set", "baselines.k=99")
    assert "run the stage" in refused(capsys, out, *baselines(run, "gone"))
    for name in ("cfg.json", "sae_weights.safetensors"):
        sae.mkdir(exist_ok=True)
        (sae / name).write_bytes((run / "baselines" / "rl" / name).read_bytes())
    known = read_json(sae / "cfg.json")
    known["metadata"]["hook_name"] = "blocks.0.hook_resid_post"
    (sae / "cfg.json").write_text(json.dumps(known))
    assert "give an SAE of that site" in refused(capsys, out, *baselines(run), "--sae", f"rl={sae}")
