"""The feature table against a naive implementation, on planted families, and on identical models."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mechprobe.errors import ConfigError, StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import FeatureTable, build_table, feature_table
from sae_training import Crosscoder, CrosscoderConfig
from tests.small_dictionaries import NAMES, MemoryStore, make_crosscoder, make_store

CONFIG = FeaturesConfig(batch_rows=64)


def naive(crosscoder: Crosscoder, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Every number of the table from its formula, with loops over features and models, in float64."""
    f = crosscoder.encode(x).detach().double().numpy()
    scale = crosscoder.scale.double().numpy()
    w = crosscoder.W_dec.detach().double().numpy()
    b = crosscoder.b_dec.detach().double().numpy()
    scaled = x.double().numpy() / scale[None, :, None]
    n_rows, d_sae, found = len(f), f.shape[1], {}
    without_bias = np.einsum("nk,kmd->nmd", f, w)
    error = scaled - without_bias - b
    own = w * scale[None, :, None]
    reads = {"joint": f}
    for m, name in enumerate(NAMES):
        stacked = torch.stack([x[:, m].double() / scale[m] * s for s in scale], dim=1).to(crosscoder.decoder.dtype)
        reads[name] = crosscoder.encode(stacked).detach().double().numpy()
    for name, read in reads.items():
        found[f"density_{name}"] = np.array([sum(value > 0 for value in read[:, k]) / n_rows for k in range(d_sae)])
        found[f"mean_{name}"] = np.array([sum(read[:, k]) / n_rows for k in range(d_sae)])
        found[f"mean_active_{name}"] = np.array([read[read[:, k] > 0, k].mean() for k in range(d_sae)])
        found[f"max_{name}"] = read.max(0)
    for m, name in enumerate(NAMES):
        l1 = np.abs(own).sum(-1)
        found[f"norm_l1_{name}"], found[f"norm_l2_{name}"] = l1[:, m], np.sqrt((own[:, m] ** 2).sum(-1))
        found[f"mas_{name}"] = np.array([l1[k, m] / l1[k].sum() for k in range(d_sae)])
        for other in NAMES[m + 1 :]:
            t = NAMES.index(other)
            pairs = [(w[k, m], w[k, t]) for k in range(d_sae)]
            found[f"cosine_{name}_{other}"] = np.array(
                [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]
            )
            found[f"correlation_{name}_{other}"] = np.array(
                [np.corrcoef(reads[name][:, k], reads[other][:, k])[0, 1] for k in range(d_sae)]
            )
        for t, other in enumerate(NAMES):  # the direction of owner t explains model m
            for kind in ("error", "reconstruction"):
                beta = np.zeros(d_sae)
                for k in range(d_sae):
                    target = error[:, m] + f[:, k, None] * w[k, m] if kind == "error" else without_bias[:, m]
                    beta[k] = (f[:, k] * (target @ w[k, t])).sum() / ((f[:, k] ** 2).sum() * (w[k, t] ** 2).sum())
                found[f"beta_{kind}_{other}_{name}"] = beta
        if m:
            found[f"nrn_{name}"] = l1[:, m] / (l1[:, 0] + l1[:, m])
            found[f"shift_{name}"] = np.array([np.linalg.norm(own[k, m] - own[k, 0]) for k in range(d_sae)])
    return found


def naive_nu(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """nu of base with each tuned model as owner, where the owner's beta is above zero."""
    kinds = [(kind, t) for kind in ("error", "reconstruction") for t in NAMES[1:]]
    own = {key: found["beta_{}_{}_{}".format(*key, key[1])] for key in kinds}
    base = {key: found["beta_{}_{}_base".format(*key)] for key in kinds}
    return {f"nu_{kind}_{t}": np.where(own[kind, t] > 0, base[kind, t] / own[kind, t], np.nan) for kind, t in kinds}


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-7)])
def test_numbers_equal_a_second_implementation(
    crosscoder: Crosscoder, store: MemoryStore, dtype: torch.dtype, atol: float
) -> None:
    """Every column. ``atol`` covers values near zero, which carry the encoder's float32 rounding; nu divides by such values."""
    crosscoder = crosscoder.to(dtype)
    frame = feature_table(crosscoder, store, CONFIG).to_pandas()
    alive = ~frame["dead"].to_numpy()
    assert alive.sum() > 6
    expected = naive(crosscoder, store.x)
    nu = naive_nu(expected)
    assert set(frame.columns) - set(expected) - set(nu) == {"feature", "class", "class_by_norm", "dead"}
    for name, values in (expected | nu if dtype == torch.float64 else expected).items():
        np.testing.assert_allclose(frame[name].to_numpy()[alive], values[alive], rtol=1e-6, atol=atol, err_msg=name)


def test_dead_features_have_no_shares(crosscoder: Crosscoder, store: MemoryStore) -> None:
    with torch.no_grad():
        crosscoder.b_enc[4] = -1e6
    table = feature_table(crosscoder, store, CONFIG)
    assert bool(table.dead[4])
    assert table.classes[4] == "dead"
    assert table.density["joint"][4] == 0
    assert np.isnan(table.mas[4]).all()
    assert np.isnan(table.nrn["rl"][4])
    assert np.isnan(table.to_pandas().loc[4, "nu_error_rl"])


def test_parts_of_a_store_merge_into_the_whole(crosscoder: Crosscoder, store: MemoryStore) -> None:
    whole = feature_table(crosscoder, store, CONFIG)
    parts = [collect(crosscoder, store, CONFIG, rows=rows) for rows in (range(80), range(80, 200))]
    merged = build_table(crosscoder, parts[1].merge(parts[0]), CONFIG)
    pd.testing.assert_frame_equal(merged.frame, whole.frame, rtol=1e-9)
    assert torch.equal(merged.top_rows.row, whole.top_rows.row)
    assert merged.n_rows == whole.n_rows == 200


def test_fewer_rows_are_the_first_ones(crosscoder: Crosscoder, store: MemoryStore) -> None:
    few = feature_table(crosscoder, store, CONFIG.replace(max_rows=50))
    assert few.n_rows == 50
    pd.testing.assert_frame_equal(few.frame, feature_table(crosscoder, make_store(store.x[:50]), CONFIG).frame)


def test_top_rows_are_the_largest_activations(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG.replace(n_examples=1))  # four rows are kept per feature
    acts = crosscoder.encode(store.x).detach()
    for feature in range(crosscoder.d_sae):
        column = acts[:, feature]
        order = sorted(range(200), key=lambda row: (-float(column[row]), row))
        expected = [row for row in order[:4] if column[row] > 0]
        assert [row for row, _ in table.top_rows.of(feature)] == expected


def planted(seed: int = 0, *, n_rows: int = 3000) -> tuple[Crosscoder, MemoryStore, list[str]]:
    """A family with known features: orthogonal directions, each in some of the models, which the encoder finds.

    The dictionary is exact but for one faked feature: its decoder in base is shrunk to nothing, as an L1 penalty
    does, while base has the concept all the same.
    """
    d_model, classes = 16, ["shared"] * 6 + ["sft-only"] * 2 + ["rl-only"] * 2 + ["base-only"] + ["sft+rl"]
    owners = {"shared": (0, 1, 2), "sft-only": (1,), "rl-only": (2,), "base-only": (0,), "sft+rl": (1, 2)}
    d_sae = len(classes) + 1
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0][:d_sae]
    truth = torch.zeros(d_sae, 3, d_model)
    for k, name in enumerate(classes):
        truth[k, list(owners[name])] = directions[k]
    truth[-1, :] = directions[-1]
    config = CrosscoderConfig(n_models=3, d_model=d_model, d_sae=d_sae, variant="l1", model_names=NAMES)
    crosscoder = Crosscoder(config)
    decoder = truth.clone()
    decoder[-1, 0] = 0.0
    encoder = truth / (truth.abs().sum(-1, keepdim=True) > 0).sum(1, keepdim=True)
    with torch.no_grad():
        crosscoder.decoder.copy_(decoder.reshape(d_sae, -1))
        crosscoder.encoder.copy_(encoder.reshape(d_sae, -1))
    crosscoder.set_scale([1.0, 1.0, 1.0])
    acts = torch.rand(n_rows, d_sae, generator=generator) + 0.5
    acts *= torch.rand(n_rows, d_sae, generator=generator) < 0.2
    x = torch.einsum("nk,kmd->nmd", acts, truth)
    return crosscoder, make_store(x), [*classes, "faked"]


def test_planted_classes_are_found() -> None:
    crosscoder, store, classes = planted()
    found = feature_table(crosscoder, store, CONFIG).classes
    assert found[:-1] == classes[:-1]


def test_latent_scaling_sees_through_a_shrunk_decoder() -> None:
    crosscoder, store, _ = planted()
    row = feature_table(crosscoder, store, CONFIG).to_pandas().iloc[-1]
    assert row["mas_base"] == 0.0  # by norms alone it is tuned-only
    assert row["class_by_norm"] == "sft+rl"
    assert row["nu_error_rl"] == pytest.approx(1.0, abs=1e-5)  # but the error of base contains it
    assert row["class"] == "unconfirmed"


def test_identical_models_have_no_specific_feature() -> None:
    crosscoder = make_crosscoder(d_model=16, d_sae=32)
    with torch.no_grad():
        crosscoder.decoder.copy_(crosscoder.decoder[:, :16].repeat(1, 3))
    crosscoder.set_scale([0.7, 0.7, 0.7])
    x = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(3)).expand(-1, 3, -1).contiguous()
    table = feature_table(crosscoder, make_store(x), CONFIG)
    alive = ~table.dead
    np.testing.assert_allclose(table.mas[alive], 1 / 3, rtol=1e-6)
    for tuned in ("sft", "rl"):
        np.testing.assert_allclose(table.nrn[tuned][alive], 0.5, rtol=1e-6)
        values = table.to_pandas()[f"nu_reconstruction_{tuned}"].to_numpy()[alive]
        np.testing.assert_allclose(values[np.isfinite(values)], 1.0, rtol=1e-6)
        np.testing.assert_allclose(table.to_pandas()[f"cosine_base_{tuned}"][alive], 1.0, rtol=1e-6)
    assert set(table.classes) <= {"shared", "dead"}


def test_saved_tables_read_back(crosscoder: Crosscoder, store: MemoryStore, tmp_path: Path) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    assert table.save(tmp_path) == ["table.parquet", "top_rows.parquet", "summary.json"]
    again = FeatureTable.load(tmp_path)
    pd.testing.assert_frame_equal(again.frame, table.frame)
    assert again.summary() == table.summary()
    assert again.top_rows.of(3) == table.top_rows.of(3)
    assert again.thresholds == table.thresholds


def test_histograms_count_live_features(crosscoder: Crosscoder, store: MemoryStore) -> None:
    summary = feature_table(crosscoder, store, CONFIG).summary()
    assert sum(summary.histograms["mas_rl"].counts) == summary.n_alive
    assert sum(summary.class_counts.values()) == summary.n_features == 12


def test_other_models_are_refused(crosscoder: Crosscoder, store: MemoryStore) -> None:
    store.models = ("base", "rl", "sft")
    with pytest.raises(StoreError, match=r"base, rl, sft, .* base, sft, rl"):
        feature_table(crosscoder, store, CONFIG)


def test_an_unknown_base_is_refused(crosscoder: Crosscoder, store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match=r"features\.base is 'bass'"):
        feature_table(crosscoder, store, CONFIG.replace(base="bass"))


def test_an_empty_store_is_refused(crosscoder: Crosscoder) -> None:
    with pytest.raises(StoreError, match="rows"):
        feature_table(crosscoder, make_store(torch.zeros(0, 3, 8)), CONFIG)
