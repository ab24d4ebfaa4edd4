"""Training without a whole store: the same rows in the same order, the same weights, bounded disk space, resume."""

import json
import multiprocessing
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.live import LiveActivations
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.token_file import subset_of
from mechprobe.cli import main
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.errors import ArtifactError, ConfigError, StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"
PROMPTS = [f"Compute {index}+{index * 7 % 13}=?" for index in range(120)]
CONFIG = CacheConfig(sites=(SITE,), shard_rows=200, held_out_frac=0.1, dtype="bfloat16")
KEPT = StoreSubset(rows=300, scale_rows=350)
SHARD_GB = 3 * (200 * 32 * 2 + 16384) / 1e9
SETTINGS = TrainSaeConfig(
    d_sae=32, k=4, n_tokens=4000, batch_size=90, lr=3e-3, pool_rows=500, training={"checkpoint_every": 10}
)


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


@pytest.fixture(scope="module")
def whole(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out = tmp_path_factory.mktemp("live") / "cache"
    cache_activations(family, PROMPTS, out=out, config=CONFIG)
    return ActivationStore.open(out, order="shards", scale_rows=KEPT.scale_rows)


@pytest.fixture(scope="module")
def kept(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    out = tmp_path_factory.mktemp("live") / "kept"
    return cache_activations(family, PROMPTS, out=out, config=CONFIG, kept=KEPT)


@pytest.fixture(scope="module")
def trained(whole: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("live") / "trained"
    train_crosscoder(whole, *SETTINGS.resolve(whole), out, pool_rows=500)
    return out


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def test_a_subset_has_the_leading_shards_and_held_out_prompts(whole: ActivationStore, kept: ActivationStore) -> None:
    assert kept.n_rows < whole.n_rows / 2
    assert kept.verify() == []
    leading = [shard for shard in kept.stream.shards if shard in whole.stream.shards]
    assert sum(len(shard.rows) for shard in leading) >= KEPT.rows
    for shard in leading:
        name = f"shard_{shard.index:05d}.h5"
        one, other = (ActivationStore.open(store.folder) for store in (whole, kept))
        rows = (shard.rows.start, shard.rows.stop)
        assert torch.equal(one.rows(*rows), other.rows(*rows)), name
    further = slice(leading[-1].rows.stop, None)
    assert kept.tokens.held_out[further].all()
    assert {kept.sequence(i).id for i in kept.held_out_samples()} <= {
        whole.sequence(i).id for i in whole.held_out_samples()
    }
    for sample in range(kept.n_samples):
        assert set(kept.tokens.sample[kept.sequence(sample).rows.start : kept.sequence(sample).rows.stop]) == {sample}
    assert torch.equal(kept.scale(), ActivationStore.open(kept.folder).scale())
    assert subset_of(whole.stream, StoreSubset(rows=10**6), 200).hash == whole.stream.hash


@pytest.mark.parametrize("mode", ["stream", "one model at a time", "ring", "large ring"])
def test_the_same_batches_as_from_the_whole_store(
    family: ModelFamily, whole: ActivationStore, kept: ActivationStore, tmp_path: Path, mode: str
) -> None:
    ring = {"ring": (tmp_path / "ring", 2.2 * SHARD_GB), "large ring": (tmp_path / "ring", 1.0)}.get(mode)
    live = LiveActivations.open(kept.folder, family, all_in_memory=mode != "one model at a time", ring=ring)
    assert live.n_rows == whole.n_rows
    assert torch.equal(live.scale(), whole.scale())
    options = {"epochs": 2, "pool_rows": 500, "site": SITE}
    batches = live.batches(70, 3, **options)
    expected = list(whole.batches(70, 3, **options))
    found = list(batches)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert batches.n_rows == int((~whole.tokens.held_out).sum())
    again = live.batches(70, 3, **options)
    again.load_state_dict({**whole.batches(70, 3, **options).state_dict(), "rows_served": 70 * 11})
    iterator = iter(again)
    for number in (11, 12, 13):
        assert torch.equal(next(iterator), expected[number])
    del iterator
    if live.ring is not None:
        assert live.ring.peak_bytes <= live.ring.max_bytes
        live.close()
        assert not (tmp_path / "ring").exists()


def test_a_large_ring_makes_every_shard_once_and_a_small_ring_more_often(
    family: ModelFamily, kept: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.harvest import live as module

    made: list[int] = []
    real = module.collect_shard
    monkeypatch.setattr(module, "collect_shard", lambda *a: (made.append(a[2].index), real(*a))[1])

    def shards_made(gigabytes: float) -> int:
        made.clear()
        live = LiveActivations.open(kept.folder, family, ring=(tmp_path / f"{gigabytes}", gigabytes))
        for _ in live.batches(100, 0, epochs=3, pool_rows=500):
            pass
        return len(made)

    live = LiveActivations.open(kept.folder, family)
    n_shards = len(live.batches(100, 0, pool_rows=500)._shards)
    assert shards_made(1.0) == 3 * n_shards
    small = shards_made(2.2 * SHARD_GB)
    half = shards_made(n_shards / 2 * SHARD_GB)
    assert 3 * n_shards < half < small <= 9 * n_shards


@pytest.mark.parametrize("mode", ["stream", "ring"])
def test_training_gives_the_same_weights(
    family: ModelFamily, kept: ActivationStore, trained: Path, tmp_path: Path, mode: str
) -> None:
    ring = (tmp_path / "crosscoder" / "ring", 2.2 * SHARD_GB) if mode == "ring" else None
    live = LiveActivations.open(kept.folder, family, ring=ring)
    shape, schedule = SETTINGS.resolve(live)
    sizes: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.append(_size(tmp_path / "crosscoder" / "ring"))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train_crosscoder(live, shape, schedule, tmp_path / "crosscoder", pool_rows=500)
    finally:
        done.set()
        watcher.join()
    assert weights(tmp_path / "crosscoder") == weights(trained)
    metrics = json.loads((tmp_path / "crosscoder" / "metrics.json").read_text())
    assert metrics["distinct_tokens"] == int((~live.tokens.held_out).sum())
    assert metrics["held_out_tokens"] == int(kept.tokens.held_out.sum())
    assert not (tmp_path / "crosscoder" / "ring").exists()
    if ring is not None:
        assert 0 < max(sizes) <= 2.2 * SHARD_GB * 1e9


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # removed in the meantime
            continue
    return total


@pytest.mark.parametrize("mode", ["stream", "ring"])
def test_sigkill_while_training_changes_no_byte(
    family: ModelFamily, kept: ActivationStore, trained: Path, tmp_path: Path, mode: str
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cache.preload"])
    out, rng = tmp_path / "crosscoder", random.Random(5)
    ring = (out / "ring", 2.2 * SHARD_GB) if mode == "ring" else None
    n_killed, longest = 0, 2.0
    for _ in range(20):
        process = context.Process(target=_train, args=(family, kept.folder, out, ring), daemon=True)
        process.start()
        deadline = time.monotonic() + 60
        while not out.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * longest)
        process.kill()  # SIGKILL; no effect if the process has ended
        process.join(timeout=60)
        assert process.exitcode in (0, -signal.SIGKILL), "the process failed by itself"
        if process.exitcode == 0:  # finished before it could be killed: start again and kill earlier
            shutil.rmtree(out)
            longest /= 2
        else:
            n_killed += 1
        if n_killed == 3:
            break
    assert n_killed == 3
    _train(family, kept.folder, out, ring)
    assert weights(out) == weights(trained)
    assert json.loads((out / "metrics.json").read_text())["tokens"] == 4050


def _train(family: ModelFamily, folder: Path, out: Path, ring: tuple[Path, float] | None) -> None:
    torch.set_num_threads(1)
    live = LiveActivations.open(folder, family, ring=ring)
    train_crosscoder(live, *SETTINGS.resolve(live), out, pool_rows=500)


def test_a_full_disk_under_the_ring_is_one_sentence_and_training_resumes(
    family: ModelFamily, kept: ActivationStore, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.harvest import ring as module

    real, calls = module.write_shard, []

    def filling(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            raise StoreError("The disk is full at the ring; make space and run the same command again.")
        return real(*args, **options)

    monkeypatch.setattr(module, "write_shard", filling)
    out = tmp_path / "crosscoder"
    with pytest.raises(StoreError, match="disk is full"):
        _train(family, kept.folder, out, (out / "ring", 2.2 * SHARD_GB))
    monkeypatch.undo()
    assert "ring" not in {thread.name for thread in threading.enumerate()}
    _train(family, kept.folder, out, (out / "ring", 2.2 * SHARD_GB))
    assert weights(out) == weights(trained)


def test_contradictions_are_refused(
    family: ModelFamily, whole: ActivationStore, kept: ActivationStore, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="whole store"):
        LiveActivations.open(whole.folder, family)
    with pytest.raises(ArtifactError, match="stream"):
        SETTINGS.source(kept.folder, lambda: family, tmp_path)
    with pytest.raises(StoreError, match="ring_gb"):
        LiveActivations.open(kept.folder, family, ring=(tmp_path / "ring", SHARD_GB))
    swapped = ModelFamily.load({**llama_family, "rl": llama_family["sft"]})
    with pytest.raises(StoreError, match=family["rl"].fingerprint):
        LiveActivations.open(kept.folder, swapped)
    with pytest.raises(ConfigError, match="blocks"):
        TrainSaeConfig(mode="stream", order="blocks")
    with pytest.raises(ConfigError, match="ring_gb"):
        TrainSaeConfig(mode="ring")
    with pytest.raises(ArtifactError, match="kept"):
        cache_activations(family, PROMPTS, out=kept.folder, config=CONFIG)


def test_stream_and_ring_through_the_command_line(
    llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    models = ["--models", *(f"{name}={path}" for name, path in llama_family.items())]
    read = [*models, "--prompts", str(prompts), "--sites", SITE]
    values = {
        "cache.shard_rows": 200, "cache.held_out_frac": 0.1, "train_sae.d_sae": 32, "train_sae.k": 4,
        "train_sae.n_tokens": 3000, "train_sae.batch_size": 100, "train_sae.pool_rows": 500,
        "train_sae.kept_rows": 300, "train_sae.scale_rows": 350,
    }  # fmt: skip
    set_ = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    folder = {name: str(tmp_path / name) for name in ("whole", "kept", "cached", "stream", "ring", "features")}
    train = ["train-sae", *read, *set_]
    live = [*train, "--cache", folder["kept"]]
    assert main([*live, "--mode", "stream", "--out", folder["stream"], "--dry-run"]) == 0
    assert "600 rows" in capsys.readouterr().out
    assert not Path(folder["kept"]).exists()
    assert main([*live, "--mode", "stream", "--out", folder["stream"]]) == 0
    assert main([*live, "--mode", "ring", "--ring-gb", "0.001", "--out", folder["ring"]]) == 0
    assert main(["cache", *read, *set_, "--out", folder["whole"]]) == 0
    cached = [*train, "--cache", folder["whole"], "--out", folder["cached"], "--set", "train_sae.order=shards"]
    assert main(cached) == 0
    assert weights(Path(folder["stream"])) == weights(Path(folder["cached"])) == weights(Path(folder["ring"]))
    capsys.readouterr()
    features = ["features", "--crosscoder", folder["stream"], "--cache", folder["kept"], "--out", folder["features"]]
    assert main([*features, *models]) == 0
    assert (Path(folder["features"]) / "manifest.json").is_file()
    capsys.readouterr()
    assert main([*train, "--cache", folder["kept"], "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*live, "--mode", "ring", "--out", str(tmp_path / "no")]) == 2
    assert "ring_gb" in capsys.readouterr().err


def test_stream_in_a_run_folder(llama_family: dict[str, Path], tmp_path: Path) -> None:
    from mechprobe.pipeline.run import Run
    from mechprobe.run_config import RunConfig

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    settings = {
        "prompts": {"file": str(prompts)},
        "cache": {"sites": [SITE], "shard_rows": 200, "held_out_frac": 0.1},
        "train_sae": {
            "mode": "stream", "d_sae": 16, "k": 4, "n_tokens": 2000, "batch_size": 100, "pool_rows": 500,
            "kept_rows": 300, "scale_rows": 350,
        },
    }  # fmt: skip
    run = Run(
        RunConfig.build(None, models={k: str(v) for k, v in llama_family.items()}, extra=settings), tmp_path / "r"
    )
    store = run.cache()
    assert store.manifest["counts"]["whole_rows"] > 2 * store.n_rows
    crosscoder = run.train_sae()
    assert crosscoder.model_names == ("base", "sft", "rl")
    assert run.features().quality.models["rl"].fve > 0
    manifest = json.loads((tmp_path / "r" / "crosscoder" / "manifest.json").read_text())
    assert manifest["results"]["mode"] == "stream"
    assert manifest["counts"]["distinct_tokens"] > store.n_rows
