"""The rule of the dropped positions, from the store through the crosscoder to features and the spliced loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.quality import measure_quality
from mechprobe.dictionary.result import SplicedLoss, TrainingMetrics
from mechprobe.dictionary.splicing import held_out_samples, spliced_losses
from mechprobe.dictionary.stage import METRICS, train_crosscoder
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.contexts import feature_examples
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import feature_table
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig
from tests.sinks import SINK, add_sink, scattered
from tests.small_dictionaries import MemoryStore

SITE = Site(1)
SHAPE = CrosscoderConfig(n_models=2, d_model=32, d_sae=48, k=6, model_names=("base", "rl"))
SCHEDULE = TrainConfig(n_tokens=3000, batch_size=100, lr=1e-2)


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    paths = {name: llama_family[name] for name in ("base", "rl")}
    return ModelFamily.load(add_sink(paths, tmp_path_factory.mktemp("sinks")))


def made(family: ModelFamily, folder: Path, **settings: float) -> tuple[ActivationStore, Crosscoder]:
    config = CacheConfig(sites=("resid_post.1",), held_out_frac=0.2, shard_rows=300).replace(**settings)
    store = cache_activations(family, scattered(), out=folder / "cache", config=config)
    return store, train_crosscoder(store, SHAPE, SCHEDULE, folder / "crosscoder")


@pytest.fixture(scope="module")
def plain(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, Crosscoder]:
    return made(family, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def ruled(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, Crosscoder]:
    return made(family, tmp_path_factory.mktemp("ruled"), drop_norm_above=10, drop_first_positions=2)


def test_the_rule_is_in_the_manifest_of_the_crosscoder_and_in_its_files(
    ruled: tuple[ActivationStore, Crosscoder], plain: tuple[ActivationStore, Crosscoder]
) -> None:
    store, crosscoder = ruled
    folder = store.folder.parent / "crosscoder"
    recorded = read_manifest(folder)["config"]["crosscoder"]
    assert recorded["drop_first_positions"] == 2
    assert recorded["norm_limits"] == list(store.token_rule([SITE])["norm_limits"])
    assert TokenRule.of(Crosscoder.load(folder)) == TokenRule.of(crosscoder)
    assert TokenRule.of(crosscoder).limits.keys() == {"base", "rl"}
    assert not TokenRule.of(plain[1])
    assert "norm_limits" not in read_manifest(plain[0].folder.parent / "crosscoder")["config"]["crosscoder"]


def test_far_tokens_are_measured_apart_and_dropped_ones_not_at_all(
    plain: tuple[ActivationStore, Crosscoder], ruled: tuple[ActivationStore, Crosscoder]
) -> None:
    found = TrainingMetrics.load(plain[0].folder.parent / "crosscoder" / METRICS)
    assert found.fve_ordinary is not None
    assert found.far_tokens
    assert found.fve["base"] > 0.99
    assert found.fve_ordinary["base"] < 0.9
    assert "decide FVE" in found.far_sentence
    clean = TrainingMetrics.load(ruled[0].folder.parent / "crosscoder" / METRICS)
    assert clean.fve_ordinary is None
    assert clean.far_sentence == ""
    assert "fve_ordinary" not in clean.to_dict()
    assert clean.held_out_tokens == int(ruled[0].in_split("held_out").sum())


def test_the_gate_tests_the_fve_without_far_tokens(plain: tuple[ActivationStore, Crosscoder]) -> None:
    store, crosscoder = plain
    rows = store.rows(0, store.n_rows)
    quality = measure_quality(crosscoder, lambda: rows.split(77), far_norms=store.far_norms([SITE]))
    kept = (rows.norm(dim=2) <= torch.tensor(store.far_norms([SITE]))).all(dim=1)
    alone = measure_quality(crosscoder, lambda: rows[kept].split(77))
    for name, model in quality.models.items():
        assert model.fve_ordinary == pytest.approx(alone.models[name].fve, rel=1e-9)
        assert model.fve_readout_ordinary == pytest.approx(alone.models[name].fve_readout, rel=1e-9)
        assert alone.models[name].fve_ordinary is None
        assert "fve_ordinary" not in alone.models[name].to_dict()
    assert any("without far tokens" in failure for failure in quality.failures)


def test_features_are_described_by_the_other_rows_alone(ruled: tuple[ActivationStore, Crosscoder]) -> None:
    """The table equals that of a store which holds only the rows that are not dropped."""
    store, crosscoder = ruled
    config = FeaturesConfig(batch_rows=37, bootstrap_draws=0, site="resid_post.1")
    kept = np.flatnonzero(~store.dropped)
    assert 0 < len(kept) < store.n_rows
    tokens = type("Tokens", (), {name: getattr(store.tokens, name)[kept] for name in ("sample", "token_id")})()
    alone = MemoryStore(store.models, store.rows(0, store.n_rows)[torch.from_numpy(kept)], tokens)
    found, expected = collect(crosscoder, store, config), collect(crosscoder, alone, config)
    assert found.sums.n_rows == expected.sums.n_rows == len(kept)
    torch.testing.assert_close(found.sums.total, expected.sums.total)
    torch.testing.assert_close(found.sums.dot_error, expected.sums.dot_error)
    assert torch.equal(found.sums.active, expected.sums.active)
    assert found.top.row.tolist() == kept[expected.top.row.numpy()].tolist()


def test_contexts_and_quantiles_hold_no_dropped_row(
    ruled: tuple[ActivationStore, Crosscoder], family: ModelFamily
) -> None:
    store, crosscoder = ruled
    config = FeaturesConfig(site="resid_post.1", n_examples=3, batch_rows=50)
    table = feature_table(crosscoder, store, config)
    features = table.frame.loc[~table.dead, "feature"].tolist()[:12]
    for entry in feature_examples(crosscoder, store, family.tokenizer, table, features, config):
        shown = [*entry["examples"], *(each for part in entry["quantiles"] for each in part["examples"])]
        assert not any(store.dropped[context["row"]] for context in shown)
        for context in shown:
            sinks = [place for place, text in enumerate(context["tokens"]) if text == SINK]
            for values in context["activations"].values():
                assert all(values[place] == 0 for place in sinks)


def test_the_splice_leaves_positions_alone_that_the_crosscoder_does_not_describe(
    plain: tuple[ActivationStore, Crosscoder], family: ModelFamily
) -> None:
    store, crosscoder = plain
    samples = held_out_samples(store, 100)
    far = store.far_norms([SITE])
    assert far is not None

    def losses(limits: tuple[float, ...], first: int = 0) -> SplicedLoss:
        config = crosscoder.config.replace(norm_limits=limits, drop_first_positions=first)
        changed = Crosscoder.from_tensors(config, crosscoder.tensors())
        return spliced_losses(changed, family, SITE, samples)["base"]

    nowhere, everywhere, ordinary = losses((1e-9, 1e-9)), losses((1e9, 1e9)), losses(tuple(far))
    assert nowhere.ce_spliced == nowhere.ce_zero == nowhere.ce_clean
    assert everywhere == spliced_losses(crosscoder, family, SITE, samples)["base"]
    assert ordinary.ce_clean == everywhere.ce_clean
    assert ordinary.ce_zero != everywhere.ce_zero
    with pytest.raises(StoreError, match="no kept token"):
        losses((), first=1000)


@given(st.integers(0, 3), st.lists(st.floats(0.1, 100), min_size=4, max_size=12), st.floats(1, 50))
def test_both_parts_of_the_rule_hold_where_they_say(first: int, norms: list[float], limit: float) -> None:
    x = torch.zeros(1, len(norms), 3)
    x[0, :, 1] = torch.tensor(norms)
    rule = TokenRule(first, {"base": limit})
    position = torch.arange(len(norms))[None]
    found = rule.mask(position, {"base": x, "other": 1e9 * x})[0]
    assert found.tolist() == [i >= first and float(x[0, i, 1]) <= np.float32(limit) for i in range(len(norms))]
    assert TokenRule(first).by_norm({"base": x}) is None
