"""The files of the explorer: what they hold, and that texts of models and data are inert in them."""

import base64
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from benchmarks.explorer import made_up_run
from mechprobe.errors import ArtifactError
from mechprobe.features.contexts.files import CONTEXTS_FILE, PROMOTED_FILE
from mechprobe.features.examples.labels import label_features
from mechprobe.files import read_json, write_json
from mechprobe.report import stage as render
from mechprobe.report.explorer.pages import SCRIPTS, write_explorer
from mechprobe.report.explorer.weights import Decoders, stored_matrix
from mechprobe.report.run_files import RunFiles
from mechprobe.report.stage import report
from mechprobe.stage_folder import Stage
from tests.report.conftest import interventions

HOSTILE = (
    "</script><script>document.title='owned'</script>", '"><img src=x onerror="document.title=1">', "\u202egnp.exe", "\x1b[31mred\x1b]0;t\x07",
    "\u2028\u2029", "<!--", "]]>", "a\nb\t c", "", "\ud800", "`|`", "=1+1", "{{ 7 * 7 }}", "javascript:alert(1)",
)  # fmt: skip
_DECODED = {"f4": "<f4", "u4": "<u4", "i4": "<i4", "u1": "u1"}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "draw_figures", lambda *_: {})


def explorer_of(run: Path) -> Path:
    return report(run).parent / "features"


def data_of(folder: Path, name: str) -> Any:
    """The last JSON value that a data file hands over."""
    text = (folder / "data" / name).read_text("ascii")
    given = re.fullmatch(r"explorer\.\w+\((?:\d+,)?(.*)\);\n", text, re.DOTALL)
    assert given
    return json.loads(given[1])


def decoded(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=_DECODED[kind])


def test_the_data_are_those_of_the_run(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=150, n_contexts=5)
    folder = explorer_of(run)
    frame = pd.read_parquet(run / "features" / "table.parquet").query("~dead").reset_index(drop=True)
    table = data_of(folder, "table.js")
    assert decoded(table["feature"], "u4").tolist() == frame["feature"].tolist()
    assert [table["classes"][k] for k in decoded(table["class"], "u1")] == frame["class"].tolist()
    for key in ("nrn_rl", "density_joint", "nu_error_sft", "mas_base"):
        np.testing.assert_array_equal(decoded(table["values"][key], "f4"), frame[key].to_numpy(np.float32))
    assert [column["key"] for column in table["columns"]][:4] == ["nrn_sft", "nrn_rl", "density_joint", "joint"]
    selected = read_json(run / "selection" / "selection.json")["features"]
    rank = decoded(table["rank"], "i4")
    assert [int(frame["feature"][k]) for k in np.argsort(rank) if rank[k] >= 0] == selected
    contexts = pd.read_parquet(run / "contexts" / CONTEXTS_FILE)
    shard = data_of(folder, "shard_1.js")
    here = contexts.loc[contexts["feature"].isin(frame["feature"][64:128])]
    offset, strings = decoded(shard["contexts"]["offset"], "u4"), shard["contexts"]["strings"]
    token = np.frombuffer(base64.b64decode(shard["contexts"]["token"]), "<u2")
    tokens = [[strings[k] for k in token[a:b]] for a, b in pairwise(offset)]
    assert tokens == [list(row) for row in here["tokens"]]
    acts = shard["contexts"]["acts"]
    assert acts["base"] == "joint"
    values = np.zeros(len(token), np.float32)
    values[decoded(acts["sft"]["at"], "u4")] = decoded(acts["sft"]["value"], "f4")
    np.testing.assert_array_equal(values, np.concatenate(here["act_sft"].to_list()))
    details = decoded(shard["details"], "f4").reshape(64, -1)
    column = table["details"].index("cosine_base_rl")
    np.testing.assert_array_equal(details[:, column], frame["cosine_base_rl"][64:128].to_numpy(np.float32))


def test_the_search_finds_peaks_and_promoted_tokens(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=4)
    index = data_of(explorer_of(run), "table.js")["tokens"]
    contexts = pd.read_parquet(run / "contexts" / CONTEXTS_FILE)
    start, token = (decoded(index["peaks"][name], "u4") for name in ("start", "token"))
    for place, (_, rows) in enumerate(contexts.groupby("feature")):
        peaks = [tokens[peak] for tokens, peak in zip(rows["tokens"], rows["peak"], strict=True)]
        assert [index["texts"][k] for k in token[start[place] : start[place + 1]]] == list(dict.fromkeys(peaks))
    promoted = pd.read_parquet(run / "contexts" / "promoted.parquet")
    start, token = (decoded(index["promoted"][name], "u4") for name in ("start", "token"))
    found = {index["texts"][k] for k in token[start[3] : start[4]]}
    assert found == {text for name in ("base", "sft", "rl") for text in promoted[f"promoted.{name}"][3][:3]}


def test_edits_of_sets_that_contain_a_feature(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=80, n_contexts=3)
    results = {**interventions(), "features": list(range(50))}
    with Stage.open(run / "interventions", name="intervene", config={}) as stage:
        write_json(stage.folder / "results.json", results)
        stage.finish(outputs=["results.json"])
    table = data_of(explorer_of(run), "table.js")
    assert table["edited"] == list(range(50))
    sizes = sorted((edit["set"], edit["size"]) for edit in table["edits"] if edit["title"] == "transplant rl into base")
    assert sizes == sorted([("top50", 50), *((f"first {n}", n) for n in (1, 2, 5, 10, 20))])


def test_hostile_texts_are_inert_in_every_file(tmp_path: Path) -> None:
    models = ("base", "</script><b>", "r\u202el")
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3, words=HOSTILE, models=models, tasks=('"><i>', "t"))
    write_json(run / "features" / "examples.json", {"features": []})
    write_json(run / "run.json", {"name": HOSTILE[0]})
    folder = explorer_of(run)
    for path in folder.rglob("*.js"):
        text = path.read_text("ascii" if path.parent.name == "data" else "utf-8")
        if path.parent.name == "data":
            assert "<" not in text
            assert not re.search(r"[^\n\x20-\x7e]", text)
    page = (folder / "index.html").read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == len(SCRIPTS) + 1
    assert "owned'</script>" not in page
    assert "Content-Security-Policy" in page
    assert not re.search(r"https?:|unsafe-|\son\w+=|<style|style=", page)
    for path in folder.glob("*.js"):
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|fetch\(|XMLHttp", path.read_text()
        )


def test_the_outputs_are_in_the_manifest_and_made_again(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=130, n_contexts=3)
    folder = explorer_of(run)
    written = {str(path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file()}
    assert written <= set(read_json(run / "report" / "manifest.json")["outputs"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    explorer_of(run)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert 'href="features/index.html"' in (run / "report" / "index.html").read_text()


def test_without_contexts_the_numbers_are_there(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    (run / "contexts" / "manifest.json").unlink()
    folder = explorer_of(run)
    assert data_of(folder, "table.js")["has_contexts"] is False
    assert list(data_of(folder, "shard_0.js")) == ["details"]


def test_contexts_of_an_earlier_table_are_not_shown(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    with Stage.open(run / "features", name="features", config={"seed": 1}, force=True) as stage:
        other = made_up_run(tmp_path / "other", n_features=70, n_contexts=3, seed=1)
        for name in ("table.parquet", "summary.json", "quality.json"):
            (stage.folder / name).write_bytes((other / "features" / name).read_bytes())
        stage.finish(outputs=["table.parquet", "summary.json", "quality.json"])
    assert data_of(explorer_of(run), "table.js")["has_contexts"] is False


def test_contexts_of_other_features_are_refused(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    other = made_up_run(tmp_path / "other", n_features=200, n_contexts=3)
    (run / "contexts" / CONTEXTS_FILE).write_bytes((other / "contexts" / CONTEXTS_FILE).read_bytes())
    with pytest.raises(ArtifactError, match="other features"):
        write_explorer(RunFiles.read(run), tmp_path / "explorer")


@pytest.mark.parametrize("name", [CONTEXTS_FILE, PROMOTED_FILE])
def test_a_spoiled_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    path = run / "contexts" / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read .*make it again with `mechprobe features`"):
        write_explorer(RunFiles.read(run), tmp_path / "explorer")


def test_labels_are_shown_for_the_examples_they_describe(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    entries = [
        {
            "feature": 5,
            "examples": [],
            "quantiles": [],
            "promoted": None,
            "statistics": {},
            "n_active": 0,
            "n_random_rows": 0,
        }
    ]
    write_json(run / "features" / "examples.json", {"features": entries})
    label_features(entries, lambda _: HOSTILE[0], name="by hand", out=run / "labels.json")
    table = data_of(explorer_of(run), "table.js")
    assert table["labels"] == {"5": HOSTILE[0]}
    assert table["labeler"] == "by hand"


def test_courses_over_checkpoints_are_those_of_the_matched_feature(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    models = ("base", "rl@step_000002", "rl")
    own, order = rng.normal(size=(70, 3, 16)).astype(np.float32), rng.permutation(70)
    other = np.concatenate([own[order] + 0.05 * rng.normal(size=own.shape), rng.normal(size=(5, 3, 16))]).astype(
        np.float32
    )
    write_dictionary(run / "crosscoder", own, ("base", "sft", "rl"))
    write_dictionary(run / "checkpoints" / "together_seed3", other, models)
    frame = pd.DataFrame({"feature": np.arange(75), "alive": np.arange(75) != 2})
    for place, name in enumerate(models):
        frame[f"norm_{name}"] = np.abs(other[:, place]).sum(axis=1)
    config = {"site": "resid_post.1", "base": "base", "min_cosine": 0.7}
    course = {"seed": 3, "checkpoints": models[1:], "progress": [0.0, 0.5, 1.0]}
    with Stage.open(run / "emergence", name="emergence", config=config) as stage:
        frame.to_parquet(stage.folder / "features_rl_seed3.parquet")
        write_json(stage.folder / "emergence.json", {"layout": "together", "arms": {"rl": [course]}})
        stage.finish(outputs=["emergence.json", "features_rl_seed3.parquet"])
    folder = tmp_path / "explorer"
    write_explorer(RunFiles.read(run), folder)
    found = data_of(folder, "shard_0.js")["courses"] | data_of(folder, "shard_1.js")["courses"]
    assert set(found) == {str(feature) for feature in range(70) if feature != order[2]}
    for feature, [got] in found.items():
        matched = int(np.flatnonzero(order == int(feature))[0])
        assert got["matched"] == matched
        assert got["models"] == list(models)
        assert got["norms"] == pytest.approx(np.abs(other[matched]).sum(axis=1), abs=1e-3)
        unit = other[matched] / np.linalg.norm(other[matched], axis=1, keepdims=True)
        assert got["cosines"] == pytest.approx(unit @ unit[0], abs=1e-3)


def write_dictionary(folder: Path, decoder: np.ndarray, models: tuple[str, ...]) -> None:
    with Stage.open(folder, name="train-sae", config={"site": "resid_post.1"}) as stage:
        write_json(stage.folder / "config.json", {"config": {"model_names": models, "d_model": decoder.shape[2]}})
        save_file({"W_dec": decoder.reshape(len(decoder), -1)}, stage.folder / "weights.safetensors")
        stage.finish(outputs=["config.json", "weights.safetensors"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_decoders_of_every_number_type_are_read_without_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = torch.randn(70, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    weights[3] = 0
    tensors = {"b_dec": torch.zeros(5), "W_dec": weights, "threshold": torch.zeros(3, dtype=torch.bfloat16)}
    save_torch(tensors, tmp_path / "weights.safetensors")
    write_json(tmp_path / "config.json", {"config": {"model_names": ["base", "rl"], "d_model": [16, 8]}})
    features = np.array([69, 3, 4])
    expected = torch.nn.functional.normalize(weights[features, 16:].float(), dim=1)
    np.testing.assert_allclose(Decoders(tmp_path).of("rl", features), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("spoil", ["missing", "cut", "other type", "no matrix", "no safetensors"])
def test_weights_that_cannot_be_read_are_one_sentence(tmp_path: Path, spoil: str) -> None:
    path, weights = tmp_path / "weights.safetensors", torch.ones(70, 24)
    save_torch({"W_dec": weights.to(torch.int8) if spoil == "other type" else weights}, path)
    if spoil == "no matrix":
        save_torch({"W_enc": weights}, path)
    elif spoil == "missing":
        path.unlink()
    elif spoil == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif spoil == "no safetensors":
        path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(ArtifactError, match="W_dec cannot be read"):
        stored_matrix(path, "W_dec")


def test_a_run_without_a_table_has_no_explorer(run: Path) -> None:
    folder = report(run).parent
    assert not (folder / "features").exists()
    assert "features/index.html" not in (folder / "index.html").read_text()


def test_the_explorer_links_to_the_pages_that_exist(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", n_features=70, n_contexts=3)
    write_explorer(RunFiles.read(run), tmp_path / "explorer", {"drift": True, "timeline": False})
    page = (tmp_path / "explorer" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="\.\./(\w+)\.html">', page.partition("<noscript>")[0]) == ["index", "drift"]
