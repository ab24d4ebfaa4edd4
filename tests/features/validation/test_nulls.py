"""Nulls and further seeds on a tiny family: their data, their verdicts, and their stage folders."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.features.config import FeaturesConfig, NullsConfig
from mechprobe.features.result import HalvesNull, IdenticalNull, ShuffledNull
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.matching import Matching, found_again, summarize
from mechprobe.features.validation.null_dictionaries import IdenticalModels, ShuffledLabels, null_batches
from mechprobe.features.validation.null_verdicts import equal_counts_p
from mechprobe.features.validation.stage import FOUND_FILE, measure_null, measure_stability
from mechprobe.files import read_json, write_json
from mechprobe.stage_folder import read_manifest
from tests.small_dictionaries import NAMES

CONFIG = FeaturesConfig(batch_rows=128, bootstrap_draws=100, bootstrap_groups=10)
SHORT = NullsConfig(n_tokens=1000)
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def null_folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The identical null with equal initial decoders."""
    out = tmp_path_factory.mktemp("nulls") / "identical"
    measure_null("identical", **folders(run), out=out, config=CONFIG, nulls=SHORT)
    return out


def folders(run: Path) -> dict[str, Path]:
    return {"crosscoder": run / "crosscoder", "cache": run / "cache"}


def test_identical_models_are_base_in_every_place(run: Path) -> None:
    store = ActivationStore.open(run / "cache")
    view = IdenticalModels(ActivationStore.open(run / "cache", models=["base"]), NAMES, SITE)
    x, base = view.rows(3, 40), store.rows(3, 40)[:, 0]
    assert all(torch.equal(x[:, model], base) for model in range(3))
    np.testing.assert_allclose(view.scale(), store.scale()[[0, 0, 0]])


def test_shuffled_labels_deal_the_same_rows_anew_for_every_sequence(run: Path) -> None:
    store = ActivationStore.open(run / "cache")
    view = ShuffledLabels(store, SITE, seed=5)
    x, scaled = view.rows(0, store.n_rows), store.rows(0, store.n_rows) / store.scale()[:, None]
    for row in range(0, store.n_rows, 17):
        order = view.labels[store.tokens.sample[row]]
        assert torch.equal(x[row], scaled[row][order.tolist()])
    assert len({tuple(order) for order in view.labels.tolist()}) == 6  # all orders of three models occur
    assert np.abs((view.labels == 0).mean(0) - 1 / 3).max() < 0.2


def test_batches_serve_every_training_row_once_an_epoch(run: Path) -> None:
    store = ActivationStore.open(run / "cache", models=["base"])
    view = IdenticalModels(store, NAMES, SITE)
    kept = view.training_rows()
    stream = null_batches(view, 7, 3, pool_rows=600)
    n_batches = int(kept.sum()) // 7
    served = torch.cat([next(stream) for _ in range(n_batches)])[:, 0]
    expected = store.rows(0, store.n_rows)[:, 0][torch.from_numpy(kept)]
    key = lambda rows: sorted(map(tuple, rows.double().numpy().round(6).tolist()))  # noqa: E731
    missing = set(key(expected)) - set(key(served))
    assert len(missing) <= 6  # rows that wait for the first batch of the next epoch
    again = null_batches(view, 7, 3, pool_rows=600)
    assert torch.equal(torch.cat([next(again) for _ in range(n_batches)])[:, 0], served)


def test_halves_train_on_their_own_rows(run: Path) -> None:
    store = ActivationStore.open(run / "cache", models=["base"])
    half = range(20, 90)
    kept = IdenticalModels(store, NAMES, SITE, within=half).training_rows()
    assert kept.any()
    assert not kept[:20].any()
    assert not kept[90:].any()
    assert (kept[20:90] == store.in_split("train")[20:90]).all()


def test_identical_models_give_no_specific_feature(null_folder: Path) -> None:
    value = read_json(null_folder / "null.json")
    assert value["passed"]
    assert value["n_false"] == {"confirmed": 0, "by_norm": 0}
    assert value["n_alive"] > 5
    table = FeatureTable.load(null_folder / "dictionary")
    np.testing.assert_allclose(table.mas[~table.dead], 1 / 3, rtol=1e-5)
    manifest = read_manifest(null_folder)
    assert manifest["counts"] == {"dictionaries": 1, "tokens_each": 1000}
    assert manifest["results"]["passed"] is True
    assert {"null.json", "dictionary/weights.safetensors", "dictionary/table.parquet"} <= set(manifest["outputs"])


def test_a_finished_null_is_not_trained_again_and_other_settings_are_refused(run: Path, null_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in null_folder.rglob("*")}
    again = measure_null("identical", **folders(run), out=null_folder, config=CONFIG, nulls=SHORT)
    assert again.passed
    assert {path: path.stat().st_mtime_ns for path in null_folder.rglob("*")} == before
    with pytest.raises(ArtifactError, match=r"n_tokens: 1000 .*500"):
        measure_null("identical", **folders(run), out=null_folder, config=CONFIG, nulls=SHORT.replace(n_tokens=500))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_null(run: Path, null_folder: Path, tmp_path: Path) -> None:
    measure_null("identical", **folders(run), out=tmp_path / "again", config=CONFIG, nulls=SHORT)
    for name in ("null.json", "dictionary/weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (null_folder / name).read_bytes()


def test_shuffled_labels_test_equal_counts(run: Path, tmp_path: Path) -> None:
    found = measure_null("shuffled-labels", **folders(run), out=tmp_path / "null", config=CONFIG, nulls=SHORT)
    assert isinstance(found, ShuffledNull)
    layers = [set(test.counts) for test in found.tests]
    assert layers == [{"base-only", "sft-only", "rl-only"}, {"base+sft", "base+rl", "sft+rl"}]
    assert found.passed == all(test.p_holm >= SHORT.p_min for test in found.tests)


def test_disjoint_halves_match_two_dictionaries(run: Path, tmp_path: Path) -> None:
    found = measure_null("disjoint-halves", **folders(run), out=tmp_path / "null", config=CONFIG, nulls=SHORT)
    assert isinstance(found, HalvesNull)
    tables = [FeatureTable.load(tmp_path / "null" / f"half_{number}") for number in (1, 2)]
    assert sum(table.n_rows for table in tables) == ActivationStore.open(run / "cache").n_rows
    alive = [int((~table.dead).sum()) for table in tables]
    assert [interval.n for interval in found.without_partner] == alive
    assert found.passed


def test_unequal_counts_are_unlikely() -> None:
    assert equal_counts_p([0, 0, 0], seed=0) == 1.0
    assert equal_counts_p([10, 11, 9], seed=0) > 0.5
    assert equal_counts_p([30, 0, 0], seed=0) < 0.001
    # Two features in one class of three are likely by chance: P = 1/3.
    assert equal_counts_p([2, 0, 0], seed=0) == pytest.approx(1 / 3, abs=0.02)


def test_a_null_can_fail(run: Path, tmp_path: Path) -> None:
    """In a dictionary whose features are all dedicated to one model, norms call every feature specific; only nu contradicts."""
    folder = tmp_path / "crosscoder"
    folder.mkdir()
    for path in (run / "crosscoder").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    manifest = read_json(folder / "manifest.json")
    manifest["config"]["crosscoder"]["n_dedicated"] = [16, 16, 16]
    write_json(folder / "manifest.json", manifest)
    stages = {"crosscoder": folder, "cache": run / "cache", "nulls": SHORT}
    blind = CONFIG.replace(thresholds={"nu_error_max": 1e9, "nu_reconstruction_max": 1e9})
    found = measure_null("identical", **stages, out=tmp_path / "blind", config=blind)
    assert isinstance(found, IdenticalNull)
    assert not found.passed
    assert "FAILED" in found.sentence
    assert found.n_false["by_norm"] == found.n_alive > 0
    with_nu = measure_null("identical", **stages, out=tmp_path / "null", config=CONFIG)
    assert isinstance(with_nu, IdenticalNull)
    assert with_nu.n_false["confirmed"] < found.n_false["confirmed"]


def test_an_imported_crosscoder_has_no_settings_to_train_by(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crosscoder"
    folder.mkdir()
    for path in (run / "crosscoder").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    manifest = read_json(folder / "manifest.json")
    del manifest["config"]["training"]
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match=r"crosscoder .*train"):
        measure_null("identical", crosscoder=folder, cache=run / "cache", out=tmp_path / "null")
    assert not (tmp_path / "null").exists()


def test_further_seeds_are_matched_to_the_crosscoder(run: Path, tmp_path: Path) -> None:
    found = measure_stability(2, **folders(run), out=tmp_path / "seeds", config=CONFIG, nulls=SHORT)
    assert found.seeds == [1, 2]
    whole = found.classes["all"]
    frame = pd.read_parquet(tmp_path / "seeds" / FOUND_FILE)
    live = frame[frame["class"] != "dead"]
    assert whole.found_share.value == pytest.approx((live["found_by"] / 2).mean())
    assert len(whole.counts) == 3
    assert read_manifest(tmp_path / "seeds" / "seed_2")["seed"] == 2
    with pytest.raises(ConfigError, match="--seeds is 0"):
        measure_stability(0, **folders(run), out=tmp_path / "none")


def test_a_dictionary_finds_all_of_itself(null_folder: Path) -> None:
    table = FeatureTable.load(null_folder / "dictionary")
    partner = np.where(table.dead, -1, np.arange(len(table)))
    itself = Matching(partner, np.where(table.dead, np.nan, 1.0), 0.7, ~table.dead)
    nothing = Matching(np.full(len(table), -1), np.full(len(table), np.nan), 0.7, ~table.dead)
    frame = found_again(table, [table, table], [itself, nothing])
    live = frame[frame["class"] != "dead"]
    assert (live["found_by"] == 1).all()
    assert (live["mean_cosine"] == 1).all()
    summary = summarize(table, [table, table], [itself, nothing], seeds=[1, 2], bootstrap_seed=0).classes["all"]
    assert summary.found_share.value == 0.5
    assert summary.found_by_all.value == 0.0


def test_the_command_trains_nulls_and_shows_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        "--crosscoder",
        str(run / "crosscoder"),
        "--cache",
        str(run / "cache"),
        "--out",
        str(tmp_path / "features"),
    ]
    short = ["--set", "nulls.n_tokens=500", "--set", "features.bootstrap_draws=50"]
    asked = ["features", *stages, *short, "--null", "identical", "--seeds", "1"]
    assert main([*asked, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "--null identical: 1 dictionaries × 500 tokens" in text
    assert "--seeds 1: 1 dictionaries × 500 tokens" in text
    assert not list(tmp_path.iterdir())
    assert main(asked) == 0
    assert "Identical models: 0 of" in capsys.readouterr().out
    assert main(["features", *stages, *short]) == 0  # finished nulls are shown without --null
    text = capsys.readouterr().out
    assert "Identical models: 0 of" in text
    assert "Other seeds: of" in text
    assert main(["features", *stages, "--null", "identicle"]) == 2
    assert "take identical, shuffled-labels, disjoint-halves" in capsys.readouterr().err
