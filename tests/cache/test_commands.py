"""The commands `cache`, `train-sae` and `store`: what they print, what they write, and how they end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.planning.cards import CARDS
from mechprobe.planning.machine import device_name
from mechprobe.planning.rates import Rates

SITE = "resid_post.1"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {index}+{index}?"}) + "\n" for index in range(40)))
    return path


def models(paths: dict[str, Path]) -> list[str]:
    return ["--models", *(f"{name}={path}" for name, path in paths.items())]


def test_train_sae_uses_the_sites_that_are_given(
    llama_family: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "cache")]
    both = "resid_post.0,resid_post.1"
    made = ["cache", *models(llama_family), "--prompts", str(prompts), "--sites", both, "--out", cache[1]]
    assert main(made) == 0
    train = ["train-sae", *cache]
    for setting in ("d_sae=32", "k=4", "n_tokens=500", "batch_size=100"):
        train += ["--set", f"train_sae.{setting}"]
    assert main([*train, "--mode", "stream", "--force", "--out", str(tmp_path / "live")]) == 2
    assert "whole store" in capsys.readouterr().err
    for given, key, found in (("resid_post.0", "site", "resid_post.0"), (both, "sites", both.split(","))):
        out = tmp_path / key
        assert main([*train, "--sites", given, "--out", str(out)]) == 0
        assert json.loads((out / "metrics.json").read_text())[key] == found
    capsys.readouterr()
    assert main([*train, "--sites", "resid_post.7", "--out", str(tmp_path / "none")]) == 2
    assert "resid_post.7" in capsys.readouterr().err


def test_cache_then_train_sae(
    llama_family: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = [
        "cache",
        *models(llama_family),
        "--prompts",
        str(prompts),
        "--sites",
        SITE,
        "--out",
        str(tmp_path / "cache"),
    ]
    assert main([*cache, "--dry-run"]) == 0
    assert "× 3 models × 1 sites" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    assert main(cache) == 0
    shown = capsys.readouterr().out
    store = ActivationStore.open(tmp_path / "cache")
    assert f"rows      {store.n_rows:,}" in shown
    assert main([*cache, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stream"] == store.stream_hash

    train = ["train-sae", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "crosscoder")]
    settings = ["d_sae=32", "k=4", "n_tokens=2000", "batch_size=100"]
    train += [part for setting in settings for part in ("--set", f"train_sae.{setting}")]
    assert main([*train, "--dry-run"]) == 0
    assert not (tmp_path / "crosscoder").exists()
    assert main(train) == 0
    shown = capsys.readouterr().out
    assert f"n = {int(store.tokens.held_out.sum())} tokens" in shown
    assert main([*train, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["fve"]) == {"base", "sft", "rl"}


def test_several_sites_in_mode_stream_are_refused_before_anything_is_written(
    llama_family: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train-sae", *models(llama_family), "--prompts", str(prompts), "--cache", str(tmp_path / "kept")]
    both = ["--sites", "resid_post.0,resid_post.1", "--mode", "stream", "--out", str(tmp_path / "live")]
    assert main([*call, *both]) == 2
    assert "several sites" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_a_dry_run_refuses_a_store_that_does_not_fit(
    llama_family: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mechprobe.cache.harvest import plan

    monkeypatch.setattr(plan, "free_bytes", lambda path: 100)
    call = ["cache", *models(llama_family), "--prompts", str(prompts), "--sites", SITE, "--out", str(tmp_path / "c")]
    assert main([*call, "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert "100 B" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("command", ["cache", "train-sae", "run"])
def test_a_dry_run_refuses_a_folder_that_cannot_be_created(
    llama_family: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    call = [command, "--out", str(prompts / "below"), "--dry-run"]
    if command != "run":  # run has its own lab
        call += [*models(llama_family), "--prompts", str(prompts), "--sites", SITE]
    assert main(call) == 2
    captured = capsys.readouterr()
    assert str(prompts / "below") in captured.err
    assert captured.err.count("\n") == 1


def test_the_time_estimate_counts_models_and_tokens(llama_family: dict[str, Path], prompts: Path) -> None:
    from mechprobe.cache.config import CacheConfig
    from mechprobe.cache.harvest.estimate import estimate_time
    from mechprobe.cache.harvest.prompts import prepare_prompts
    from mechprobe.data.sources import as_prompts
    from mechprobe.models.family import ModelFamily

    family = ModelFamily.load(llama_family)
    estimates = []
    for n_prompts in (10, 40):
        config = CacheConfig(sites=(SITE,), max_prompts=n_prompts)
        estimates.append(estimate_time(family, prepare_prompts(family, as_prompts(prompts), config), probe_seconds=0.2))
    few, many = estimates
    assert set(many.rates) == {"base", "sft", "rl"}
    assert many.rates["base"] == many.rates["rl"], "models of one architecture are measured once"
    assert 0 < many.seconds <= many.most_seconds
    loads = 2 * sum(rate.load_s for rate in few.rates.values())
    assert few.seconds > loads


def test_a_dry_run_has_one_time(
    llama_family: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of the calibration, or without one that of a probe."""
    call = ["cache", *models(llama_family), "--prompts", str(prompts), "--sites", SITE, "--out", str(tmp_path / "c")]
    for calibrated in (False, True):
        place = tmp_path / f"{calibrated}.json"
        monkeypatch.setenv("MECHPROBE_CALIBRATION", str(place))
        if calibrated:
            rates = Rates.of_card(CARDS["H100"])
            replace(rates, device="cpu", source="measured", name=device_name("cpu"), context=0, made={}).save(place)
        assert main([*call, "--dry-run", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert ("time" in found) is not calibrated
        assert (found["cost"][0]["seconds"] is not None) is calibrated


@pytest.mark.parametrize(
    ("reader", "sizes", "expected"),
    [("bridge", [100] * 10, 0), ("auto", [100] * 10, 800), ("plain", [100, 300], 800), ("auto", [100] * 1000, 400)],
)
def test_the_estimate_counts_the_comparison_of_readers(reader: str, sizes: list[int], expected: int) -> None:
    """Both readers on up to four batches of the first shard, here of 200 rows at most in the last case."""
    from mechprobe.cache.config import CacheConfig
    from mechprobe.cache.harvest.estimate import _compared_tokens

    config = CacheConfig.model_validate({"reader": reader, "shard_rows": 200 if len(sizes) == 1000 else 32768})
    assert _compared_tokens(sizes, config) == expected


def test_run_under_a_launcher_of_several_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "--out", str(tmp_path / "run")]) == 2
    assert "`mechprobe run` runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_store_info_verify_export(
    small_store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "cache"
    shutil.copytree(small_store.folder, folder)
    assert main(["store", "info", str(folder)]) == 0
    assert small_store.stream_hash in capsys.readouterr().out
    assert main(["store", "verify", str(folder)]) == 0
    assert main(["store", "export", str(folder), "--out", str(tmp_path / "all.safetensors")]) == 0
    tensors = load_file(tmp_path / "all.safetensors")
    assert (tensors[f"{SITE}/rl"] == small_store.rows_of("rl", 0, small_store.n_rows, SITE).numpy()).all()
    assert (tensors["tokens/token_id"] == small_store.tokens.token_id).all()
    assert main(["store", "export", str(folder), "--out", str(tmp_path / "all.safetensors")]) == 2
    shard = folder / "rl" / "shard_00000.h5"
    written = shard.read_bytes()
    shard.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    capsys.readouterr()
    assert main(["store", "verify", str(folder)]) == 2
    captured = capsys.readouterr()
    assert "rl/shard_00000.h5" in captured.out
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"prompt": None}, "no prompts"),
        ({"prompt": "x" * 90}, "91 tokens"),
        ({"site": "resid_post.7"}, "resid_post.7"),
        ({"site": "blocks.1"}, "blocks.1"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"dtype": "int4"}, "int4"),
    ],
)
def test_mistakes_end_in_one_sentence_and_exit_code_2(
    llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, facts: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    text = change.get("prompt", "a prompt")
    prompts.write_text("" if text is None else json.dumps({"prompt": text}) + "\n")
    paths = {**llama_family, **({"rl": change["model"]} if "model" in change else {})}
    code = main(
        [
            "cache",
            *models(paths),
            "--prompts",
            str(prompts),
            "--sites",
            change.get("site", SITE),
            "--dtype",
            change.get("dtype", "float32"),
            "--out",
            str(tmp_path / "cache"),
        ]
    )
    captured = capsys.readouterr()
    assert code == 2
    assert facts in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "cache").exists()
