"""A dictionary of the difference between two models: read-outs, held-out measurements, training from a store."""

import json
import math
from pathlib import Path

import pytest
import torch

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.dictionary.baselines.stage import measure_baselines
from mechprobe.dictionary.config import QualityGate, TrainSaeConfig
from mechprobe.dictionary.quality import measure_quality
from mechprobe.dictionary.readout import AllReadouts, FoldedEncoder, Readout
from mechprobe.dictionary.splicing import TokenizedSample, spliced_losses
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.errors import ConfigError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.stage import analyze_features
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.table.sums import FeatureSums
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training import Crosscoder, SaeTrainingError

SITE = Site.parse("resid_post.1")
SETTINGS = TrainSaeConfig(
    models=("base", "rl"), d_sae=48, k=4, n_tokens=6000, batch_size=200, lr=3e-3, pool_rows=1000, crosscoder={"reads": "difference"}
)  # fmt: skip


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


@pytest.fixture(scope="module")
def store(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    prompts = [f"Compute {index}+{index * 7 % 13}=?" for index in range(80)]
    config = CacheConfig(sites=(str(SITE),), shard_rows=500, held_out_frac=0.1)
    cache_activations(family, prompts, out=(folder := tmp_path_factory.mktemp("difference") / "cache"), config=config)
    return ActivationStore.open(folder, ("base", "rl"))


@pytest.fixture(scope="module")
def dictionary(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Crosscoder:
    return train_crosscoder(store, *SETTINGS.resolve(store), tmp_path_factory.mktemp("sae") / "difference")


def test_it_is_trained_from_the_store_of_more_models(store: ActivationStore, dictionary: Crosscoder) -> None:
    assert dictionary.model_names == ("base", "rl")
    assert dictionary.config.reads == "difference"
    rows = store.rows(0, store.n_rows).float()
    norm = (rows[:, 1] - rows[:, 0]).norm(dim=1).mean() / store.d_model**0.5
    assert torch.allclose(dictionary.scale, norm.expand(2), rtol=0.05)  # of the first batches


def test_three_models_have_no_difference(family: ModelFamily, store: ActivationStore) -> None:
    every = ActivationStore.open(store.folder)
    with pytest.raises(ConfigError, match=r"train-sae: .*two models, not base, sft, rl; name two"):
        SETTINGS.resolve(every)


def test_it_has_one_activation(store: ActivationStore, dictionary: Crosscoder) -> None:
    rows = store.rows(0, 50).float()
    x, acts = {"base": rows[:, 0], "rl": rows[:, 1]}, dictionary.encode(rows)
    assert bool((acts > 0).any())
    for readout in (Readout("joint"), Readout("swap"), Readout("swap", ("base", "rl"))):
        for model in ("base", "rl"):
            torch.testing.assert_close(readout.feature_acts(dictionary, x, model), acts, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(FoldedEncoder(dictionary, readout, model)(x), acts, rtol=1e-3, atol=1e-3)
    for found in AllReadouts(dictionary, Readout("swap")).encode(rows):
        torch.testing.assert_close(found, acts, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="which one model alone does not have; take the joint"):
        Readout("single").slots(dictionary, "rl")


def test_fve_is_that_of_the_difference(store: ActivationStore, dictionary: Crosscoder) -> None:
    rows = store.rows(0, store.n_rows).float()
    found = measure_quality(dictionary, lambda: iter([rows]), gate=QualityGate(min_fve=0.0))
    difference, x_hat = (rows[:, 1] - rows[:, 0]).double(), dictionary(rows).detach().double()
    left = (difference - x_hat[:, 1]).square().sum()
    expected = 1 - float(left / (difference - difference.mean(0)).square().sum())
    assert not bool(x_hat[:, 0].any())
    assert found.models["rl"].fve == pytest.approx(expected, abs=1e-5)
    assert found.models["rl"].fve_readout == pytest.approx(expected, abs=1e-4)
    assert math.isnan(found.models["base"].fve)  # base is where the difference starts, so the gate does not test it
    assert found.trusted
    assert not measure_quality(dictionary, lambda: iter([rows]), gate=QualityGate(min_fve=1.0)).trusted


def test_latent_scaling_is_that_of_the_difference(store: ActivationStore, dictionary: Crosscoder) -> None:
    rows = store.rows(0, 40).float()
    sums = FeatureSums.zeros(2, dictionary.d_sae)
    sums.update(AllReadouts(dictionary, Readout("joint")), rows)
    acts, scale = dictionary.encode(rows).double(), dictionary.scale.double()[:, None]
    error = (dictionary.unflatten(dictionary.target(rows)).double() - dictionary.decode(acts.float()).double()) / scale
    expected = torch.einsum("bk,kod,bmd->omk", acts, dictionary.W_dec.detach().double(), error)
    torch.testing.assert_close(sums.dot_error, expected, rtol=1e-3, atol=1e-3)


def test_the_spliced_residual_is_that_of_the_first_model_plus_the_difference(
    family: ModelFamily, dictionary: Crosscoder
) -> None:
    ids = tuple(family.tokenizer("Compute 3+4=? 7").input_ids)
    sample = TokenizedSample(ids, (True,) * len(ids), (True,) * len(ids))
    with torch.no_grad():  # a perfect dictionary of the difference, of one pair of features per coordinate
        perfect = Crosscoder(dictionary.config.replace(d_sae=2 * 32, k=2 * 32, variant="topk"))
        perfect.set_scale([1.0, 1.0])
        axes = torch.cat([torch.eye(32), -torch.eye(32)])
        perfect.encoder.copy_(torch.cat([-axes, axes], dim=1))
        perfect.decoder.copy_(torch.cat([torch.zeros_like(axes), axes], dim=1))
        perfect.b_dec_flat.zero_()
    found = spliced_losses(perfect, family.subset("base", "rl"), SITE, [sample])
    for model in ("base", "rl"):
        assert found[model].ce_spliced == pytest.approx(found[model].ce_clean, abs=1e-5)
    # without features, rl runs with the residual of base
    assert found["rl"].kl_zero > 100 * abs(found["rl"].kl_spliced)
    assert found["rl"].ce_recovered == pytest.approx(1.0, abs=1e-2)
    assert found["base"].ce_zero == pytest.approx(found["base"].ce_clean)


def test_the_command_and_the_feature_table_take_it(
    family: ModelFamily, store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "train_sae.crosscoder.reads=difference", 'train_sae.models=["base","rl"]', "train_sae.d_sae=48", "train_sae.k=4",
        "train_sae.n_tokens=4000", "train_sae.batch_size=200", "train_sae.lr=3e-3",
    ]  # fmt: skip
    command = ["train-sae", "--out", str(tmp_path / "sae"), "--cache", str(store.folder), "--set"]
    assert main([*command, *settings]) == 0
    assert Crosscoder.load(tmp_path / "sae").config.reads == "difference"
    capsys.readouterr()
    assert main([*command, settings[0]]) == 2
    assert "two models" in capsys.readouterr().err

    config = FeaturesConfig(ce_samples=4, gate=QualityGate(min_fve=-1.0, min_ce_recovered=-1e9, max_dead_share=1.0))
    analyze_features(tmp_path / "sae", store.folder, out=tmp_path / "features", family=family, config=config)
    table = FeatureTable.load(tmp_path / "features").to_pandas()
    assert len(table) == 48
    quality = json.loads((tmp_path / "features" / "quality.json").read_text())
    assert quality["trusted"]
    assert quality["models"]["rl"]["fve_readout"] > 0.3
    with pytest.raises(SaeTrainingError, match="mechprobe baselines needs a dictionary of the activations"):
        measure_baselines(tmp_path / "sae", store.folder, out=tmp_path / "baselines")
