"""Contexts and promoted tokens of every live feature: the same as those of chosen features, in files that are read back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ArtifactError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.contexts import collect, files
from mechprobe.features.contexts.files import TOP, ContextGroup, read_contexts, read_promoted, write_contexts
from mechprobe.features.contexts.stage import collect_contexts
from mechprobe.features.examples.contexts import feature_examples
from mechprobe.features.examples.promoted import promoted_by_features
from mechprobe.features.stage import analyze_features
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.files import read_json
from mechprobe.models.family import ModelFamily
from mechprobe.stage_folder import read_manifest
from sae_training import Crosscoder
from tests.small_dictionaries import crosscoder, run, store

__all__ = ["crosscoder", "run", "store"]

CONFIG = FeaturesConfig(batch_rows=128, ce_samples=4, n_shown=0, n_examples=3, near=("base", "rl"))


def made(run: Path, folder: Path, family: ModelFamily, **settings: Any) -> tuple[Path, FeaturesConfig]:
    config = CONFIG.replace(**settings)
    inputs = {"crosscoder": run / "crosscoder", "cache": run / "cache"}
    analyze_features(**inputs, out=folder / "features", config=config)
    out = collect_contexts(
        **inputs, features=folder / "features", family=family, out=folder / "contexts", config=config
    )
    return out, config.with_site(run / "crosscoder", ActivationStore.open(run / "cache"))


def entries(groups: Sequence[ContextGroup]) -> dict[int, list[dict[str, Any]]]:
    """Contexts by feature in the form of ``examples.json``, with their part."""
    found: dict[int, list[dict[str, Any]]] = {}
    for group in groups:
        for number, feature in enumerate(group.feature.tolist()):
            span = slice(group.offset[number], group.offset[number + 1])
            entry = {
                "part": int(group.part[number]), "sample": int(group.sample[number]), "row": int(group.row[number]),
                "peak": int(group.peak[number]), "tokens": [group.strings[token] for token in group.token[span]],
                "is_response": group.is_response[span].tolist(),
                "activations": {name: np.round(values[span].astype(float), 4).tolist() for name, values in group.acts.items()},
            }  # fmt: skip
            found.setdefault(feature, []).append(entry)
    return found


@pytest.mark.parametrize("group_features", [64, 5])
def test_every_live_feature_has_the_contexts_of_its_example_entry(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_features: int
) -> None:
    monkeypatch.setattr(collect, "GROUP_FEATURES", group_features)
    monkeypatch.setattr("mechprobe.features.contexts.stage.GROUP_FEATURES", group_features)
    family = ModelFamily.load(llama_family)
    out, config = made(run, tmp_path, family)
    table = FeatureTable.load(tmp_path / "features")
    live = [feature for feature, dead in enumerate(table.dead) if not dead]
    groups = list(read_contexts(out / files.CONTEXTS_FILE))
    assert len(groups) == -(-len(live) // group_features)
    found = entries(groups)
    assert list(found) == live
    dictionary, source = Crosscoder.load(run / "crosscoder"), ActivationStore.open(run / "cache")
    expected = feature_examples(dictionary, source, family.tokenizer, table, live, config)
    compared = 0
    for entry in expected:
        own = found[entry["feature"]]
        parts = [
            (TOP, entry["examples"]),
            *((number, part["examples"]) for number, part in enumerate(entry["quantiles"])),
        ]
        wanted = [{"part": number, **example} for number, examples in parts for example in examples]
        if entry["n_active"] > collect.POOL_ROWS:  # random contexts come from another sample of the active rows
            own, wanted = ([c for c in contexts if c["part"] == TOP] for contexts in (own, wanted))
        compared += len(wanted)
        for got, want in zip(own, wanted, strict=True):
            acts, expected_acts = got.pop("activations"), want.pop("activations")
            assert got == want
            assert acts.keys() == expected_acts.keys()
            for name, values in acts.items():
                assert values == pytest.approx(expected_acts[name], abs=2e-4)
    assert compared > 5 * len(live)
    assert read_manifest(out)["counts"] == {"features": len(live), "contexts": sum(map(len, found.values()))}


def test_promoted_tokens_are_those_of_the_example_entries(
    run: Path, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    family = ModelFamily.load(llama_family)
    out, config = made(run, tmp_path, family, n_promoted=4, n_quantiles=0)
    [group] = read_promoted(out / files.PROMOTED_FILE)
    dictionary, source = Crosscoder.load(run / "crosscoder"), ActivationStore.open(run / "cache")
    table = FeatureTable.load(tmp_path / "features")
    features = group.feature.tolist()
    promoted = promoted_by_features(dictionary, family, features, n=4, final_norm=config.final_norm)
    expected = feature_examples(dictionary, source, family.tokenizer, table, features, config, promoted=promoted)
    for place, entry in enumerate(expected):
        for name, ends in entry["promoted"]["models"].items():
            for end, tokens in ends.items():
                index, value = group.models[name][end]
                assert [group.strings[token] for token in index[place]] == [token["token"] for token in tokens]
                assert value[place] == pytest.approx([token["value"] for token in tokens], abs=1e-4)


def test_a_data_frame_has_one_row_per_context(run: Path, llama_family: dict[str, Path], tmp_path: Path) -> None:
    out, _ = made(run, tmp_path, ModelFamily.load(llama_family), n_promoted=0)
    assert not (out / files.PROMOTED_FILE).exists()
    frame = pd.read_parquet(out / files.CONTEXTS_FILE)
    assert (frame["tokens"].map(len) == frame["act_rl"].map(len)).all()
    top = frame.loc[frame["part"] == TOP]
    peaks = [acts[peak] for acts, peak in zip(top["act_joint"], top["peak"], strict=True)]
    assert min(peaks) > 0
    assert all(
        list(acts) == sorted(acts, reverse=True) for _, acts in pd.Series(peaks).groupby(top["feature"].to_numpy())
    )
    written = (out / files.CONTEXTS_FILE).read_bytes()
    again, _ = made(run, tmp_path / "again", ModelFamily.load(llama_family), n_promoted=0)
    assert (again / files.CONTEXTS_FILE).read_bytes() == written


def test_a_changed_table_makes_the_contexts_again(run: Path, llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load(llama_family)
    out, _ = made(run, tmp_path, family, n_promoted=0)
    before = read_manifest(out)
    assert made(run, tmp_path, family, n_promoted=0)[0] == out
    assert read_manifest(out) == before
    inputs = {"crosscoder": run / "crosscoder", "cache": run / "cache"}
    analyze_features(**inputs, out=tmp_path / "features", config=CONFIG.replace(n_examples=1), force=True)
    collect_contexts(
        **inputs,
        features=tmp_path / "features",
        family=family,
        out=out,
        config=CONFIG.replace(n_promoted=0, n_examples=1),
    )
    assert read_manifest(out)["counts"]["contexts"] < before["counts"]["contexts"]


def test_lone_surrogates_are_written_and_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    one = np.array([1])
    nan, path = np.array([np.nan]), tmp_path / files.CONTEXTS_FILE
    group = ContextGroup(
        one, one, nan, nan, nan, nan, one, one, np.array([0]), np.array([0, 2]), ["\ud800", "b"], np.array([0, 1]),
        np.array([True, False]), {"joint": np.array([0.5, 0.0])},
    )  # fmt: skip
    assert write_contexts(path, iter([group])) == 1
    [read] = read_contexts(path)
    assert [read.strings[token] for token in read.token] == ["?", "b"]
    path.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(read_contexts(path))


def test_the_command_writes_them(
    run: Path, llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mechprobe.cli import main

    settings = tmp_path / "run.toml"
    models = "\n".join(f'{name} = "{path}"' for name, path in llama_family.items())
    settings.write_text(f"[models]\n{models}\n[features]\nbatch_rows = 128\nce_samples = 4\nn_shown = 1\n", "utf-8")
    out = tmp_path / "features"
    code = main(
        ["features", "--config", str(settings), "--run", str(tmp_path / "run"), "--crosscoder", str(run / "crosscoder"),
         "--cache", str(run / "cache"), "--out", str(out)]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert read_json(tmp_path / "contexts" / "manifest.json")["stage"] == "contexts"
