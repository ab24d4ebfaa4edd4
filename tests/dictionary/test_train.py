"""Training from a store: held-out metrics, reuse of finished folders, and resuming to the same weights."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.dictionary.stage import ProgressLine, train_crosscoder
from mechprobe.errors import ArtifactError, ConfigError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.progress import Meter

SETTINGS = TrainSaeConfig(
    d_sae=64, k=8, n_tokens=20_000, batch_size=200, lr=3e-3, pool_rows=1000, training={"checkpoint_every": 20}
)


@pytest.fixture(scope="module")
def store(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    prompts = [f"Compute {index}+{index * 7 % 13}=?" for index in range(150)]
    config = CacheConfig(sites=("resid_post.1",), shard_rows=500, held_out_frac=0.1)
    return cache_activations(
        ModelFamily.load(llama_family), prompts, out=tmp_path_factory.mktemp("train") / "cache", config=config
    )


def test_train_writes_metrics_of_the_held_out_prompts(store: ActivationStore, tmp_path: Path) -> None:
    crosscoder = train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "crosscoder", pool_rows=1000)
    metrics = json.loads((tmp_path / "crosscoder" / "metrics.json").read_text())
    assert crosscoder.model_names == store.models == ("base", "sft", "rl")
    assert set(metrics["fve"]) == {"base", "sft", "rl"}
    assert min(metrics["fve"].values()) > 0.5
    assert metrics["held_out_tokens"] == int(store.tokens.held_out.sum())
    assert metrics["tokens"] == 20_000
    assert metrics["distinct_tokens"] == int((~store.tokens.held_out).sum())
    manifest = json.loads((tmp_path / "crosscoder" / "manifest.json").read_text())
    assert manifest["models"] == store.fingerprints
    before = (tmp_path / "crosscoder" / "weights.safetensors").stat().st_mtime_ns
    again = train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "crosscoder", pool_rows=1000)
    assert (tmp_path / "crosscoder" / "weights.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.W_dec, crosscoder.W_dec)


def test_the_scale_makes_the_mean_norm_sqrt_d(store: ActivationStore) -> None:
    x = store.rows(0, store.n_rows)[~torch.from_numpy(store.tokens.held_out)]
    expected = x.double().norm(dim=-1).mean(0) / store.d_model**0.5
    assert torch.allclose(store.scale().double(), expected, rtol=1e-6)


def test_an_interrupted_training_goes_on_to_the_same_weights(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "whole", pool_rows=1000)
    from mechprobe.dictionary import stage as module

    class StopsAt50(ProgressLine):
        def __call__(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] >= 50:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "ProgressLine", StopsAt50)
    with pytest.raises(KeyboardInterrupt):
        train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "broken", pool_rows=1000)
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "manifest.json").exists()
    resumed = train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "broken", pool_rows=1000)
    assert torch.equal(whole.W_dec, resumed.W_dec)
    assert torch.equal(whole.W_enc, resumed.W_enc)


def test_other_settings_are_refused_by_name(store: ActivationStore, tmp_path: Path) -> None:
    train_crosscoder(store, *SETTINGS.resolve(store), tmp_path / "crosscoder", pool_rows=1000)
    other = SETTINGS.replace(lr=1e-3)
    with pytest.raises(ArtifactError, match=r"training\.lr: 0\.003 .*0\.001"):
        train_crosscoder(store, *other.resolve(store), tmp_path / "crosscoder", pool_rows=1000)


def test_models_in_another_order_are_refused(store: ActivationStore, tmp_path: Path) -> None:
    config, train_config = SETTINGS.resolve(store)
    turned = ActivationStore.open(store.folder, models=("rl", "base", "sft"))
    with pytest.raises(StoreError, match=r"base, sft, rl.* rl, base, sft"):
        train_crosscoder(turned, config, train_config, tmp_path / "crosscoder")
    assert not (tmp_path / "crosscoder").exists()


def test_the_paper_preset(store: ActivationStore) -> None:
    config, train_config = TrainSaeConfig(preset="paper").resolve(store)
    assert (config.variant, config.d_sae, config.n_models) == ("l1", 32768, 3)
    assert (train_config.n_tokens, train_config.batch_size, train_config.lr) == (400_000_000, 1024, 1e-4)
    assert (train_config.l1_coefficient, train_config.l1_warmup_frac) == (2.0, 0.05)
    small, _ = TrainSaeConfig(preset="paper", d_sae=128).resolve(store)
    assert small.d_sae == 128


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "paper", "variant": "topk"}, "L1"),
        ({"variannt": "topk"}, "variant"),
        ({"crosscoder": {"shared_inits": True}}, "shared_init"),
        ({"training": {"lr": 1.0}, "lr": 1.0}, "twice"),
        ({"d_sae": 8, "k": 9}, "k = 9"),
    ],
)
def test_settings_that_contradict_are_one_sentence(store: ActivationStore, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        TrainSaeConfig(**settings).resolve(store)
    assert "\n" not in str(caught.value)


def test_several_sites_of_a_store_go_into_one_dictionary(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.cache.store.row_source import SiteBatches
    from mechprobe.dictionary import stage as module
    from mechprobe.features.stage import analyze_features
    from mechprobe.interventions.hooks.attach import edited
    from sae_training import SaeTrainingError

    prompts = [f"Compute {index}+{index * 7 % 13}=?" for index in range(60)]
    config = CacheConfig(sites=("resid_post.0", "resid_post.1"), shard_rows=200, held_out_frac=0.1)
    store = cache_activations(ModelFamily.load(llama_family), prompts, out=tmp_path / "cache", config=config)
    chosen = TrainSaeConfig(
        sites=("resid_post.0", "resid_post.1"),
        d_sae=64,
        k=8,
        n_tokens=6000,
        batch_size=200,
        lr=3e-3,
        variant="jumprelu",
    )
    shape, schedule = chosen.resolve(store)
    names = tuple(f"{model}/resid_post.{layer}" for model in ("base", "sft", "rl") for layer in (0, 1))
    assert shape.source_names == names

    # A row of the batch is one row of the store at both sites, in the order of the source axis.
    batch = next(iter(SiteBatches(store, store.sites, 50, seed=3)))
    first, second = (store.rows(0, store.n_rows, site=site) for site in store.sites)
    row = int((first[:, 1] == batch[7, 2]).all(dim=1).nonzero()[0, 0])
    assert torch.equal(batch[7], torch.stack((first[row], second[row]), dim=1).flatten(0, 1))

    whole = train_crosscoder(store, shape, schedule, tmp_path / "crosscoder", pool_rows=500)
    metrics = json.loads((tmp_path / "crosscoder" / "metrics.json").read_text())
    assert set(metrics["fve"]) == set(metrics["scale"]) == set(names)
    assert metrics["sites"] == ["resid_post.0", "resid_post.1"]
    assert min(metrics["fve"].values()) > 0.3
    torch.testing.assert_close(whole.scale[2:4], torch.stack([store.scale(site)[1] for site in store.sites]))

    class StopsAt20(ProgressLine):
        def __call__(self, metrics: dict[str, Any]) -> None:
            if metrics["step"] >= 20:
                raise KeyboardInterrupt

    often = schedule.replace(checkpoint_every=5, log_every=5)
    again = train_crosscoder(store, shape, often, tmp_path / "whole", pool_rows=500)
    monkeypatch.setattr(module, "ProgressLine", StopsAt20)
    with pytest.raises(KeyboardInterrupt):
        train_crosscoder(store, shape, often, tmp_path / "broken", pool_rows=500)
    monkeypatch.undo()
    resumed = train_crosscoder(store, shape, often, tmp_path / "broken", pool_rows=500)
    assert resumed.fingerprint == again.fingerprint

    with pytest.raises(StoreError, match=r"resid_post.0, resid_post.1.* site resid_post.0"):
        train_crosscoder(store, shape, schedule, tmp_path / "no", site="resid_post.0")
    with pytest.raises(SaeTrainingError, match="2 sites"):
        analyze_features(tmp_path / "crosscoder", tmp_path / "cache", out=tmp_path / "features")
    assert not (tmp_path / "features").exists()
    family = ModelFamily.load(llama_family)
    with (
        pytest.raises(SaeTrainingError, match="2 sites"),
        edited(family["rl"], whole, [1], "ablate", site="resid_post.1"),
    ):
        pass


def test_one_site_or_several_but_not_both() -> None:
    with pytest.raises(ConfigError, match=r"site = .*sites = "):
        TrainSaeConfig(site="resid_post.0", sites=("resid_post.0", "resid_post.1"))


def test_the_progress_line_counts_every_step_and_shows_every_model(store: ActivationStore) -> None:
    now = [0.0]
    meter = Meter(1000, "tokens", lambda: now[0])
    line = ProgressLine(meter, SETTINGS.resolve(store)[0])
    line.count(300)  # an earlier command trained on them
    assert (meter.done, meter.rate) == (300, 0)
    now[0] = 10.0
    line.count(400)
    line({"tokens": 400, "l0": 7.5, "fve": {"base": 0.5, "sft": None, "rl": 0.25}, "dead_frac": 0.125})
    line.count(500)
    assert meter.done == 500
    assert meter.rate == pytest.approx(20)
    assert meter.fields == {"l0": 7.5, "fve": "base 0.500 sft - rl 0.250", "dead": "12.5%"}


def test_the_progress_ends_at_its_total(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.dictionary import stage as module

    totals, counts = list[int](), list[int]()

    class Counts(ProgressLine):
        def __init__(self, *_: object) -> None: ...

        def __call__(self, metrics: dict[str, Any]) -> None: ...

        def count(self, tokens: int) -> None:
            counts.append(tokens)

    def progress(total: int, *_: Any, **_options: Any) -> Any:
        totals.append(total)
        return nullcontext(None)

    monkeypatch.setattr(module, "ProgressLine", Counts)
    monkeypatch.setattr(module, "progress", progress)
    settings = SETTINGS.replace(n_tokens=2100)  # not a number of whole steps
    train_crosscoder(store, *settings.resolve(store), tmp_path / "crosscoder", pool_rows=1000)
    assert totals == [2200]
    assert counts[-1] == 2200
