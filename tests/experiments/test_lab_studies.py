"""The lab study and the tables of the paper, at a tiny size: what is run, saved, counted and printed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import dictionaries, seeds, turned
from experiments.paper_a import intervene
from mechprobe.errors import SelectionError
from mechprobe.files import read_json
from mechprobe.lab.summary import shipped
from mechprobe.records import read_jsonl
from mechprobe.stage_folder import read_manifest

SMALL = [
    "localize.n_per_task=2", "localize.sites=['resid_post.2']", "train_sae.d_sae=128", "train_sae.k=8",
    "train_sae.n_tokens=20480", "evaluate.n_per_task=24", "select.n_controls=1", "select.min_gained=2", "intervene.n_per_task=2",
    "intervene.sizes=[1]", "intervene.workers=1", "intervene.collateral_texts=2", "intervene.max_new_tokens=4",
    "tasks.names=['calculation','simulation','diagnostic']",
]  # fmt: skip
SETS = (("top3", "score"), ("top5", "joint"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Record and run folder of the shipped lab, for two sets with one control each."""
    folder = tmp_path_factory.mktemp("study") / "run"
    lines = (shipped("shared-marker") / "prompts.jsonl").read_text().splitlines(keepends=True)
    prompts = folder.with_name("prompts.jsonl")
    prompts.write_text("".join(lines[:40]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "N_CONTROLS", 1)
        patch.setattr(seeds, "SETS", SETS)
        patch.setattr(seeds, "MAIN", "top5 by joint")
        return seeds.measure(shipped("shared-marker"), folder, 0, [*SMALL, f"prompts.file={prompts}"]), folder


def test_a_record_contains_what_the_study_prints(measured: tuple[dict[str, Any], Path]) -> None:
    record, folder = measured
    assert set(record["sets"]) == {"top3 by score", "top5 by joint"}
    for name, found in record["sets"].items():
        assert set(found["rows"]) == {"base", "rl"}
        assert "calculation" not in found["rows"]["base"]
        assert found["rows"]["rl"]["pooled"]["n"] == 4
        assert found["rows"]["rl"]["pooled"]["verdict"] == "no verdict: 4 samples, fewer than 20", name
    assert set(record["sizes"]) == {"base", "rl"}
    assert record["collateral"]["n_texts"] >= 1
    assert record["site"]["chosen"] == "resid_post.2"
    assert set(record["crosscoder"]["fve"]) == {"base", "sft", "rl"}
    plans = [read_manifest(folder / f"judged_{rule}_{ranking}")["counts"]["conditions"] for rule, ranking in SETS]
    # clean, ceilings and prefix; per host a set, its other read-out, four controls, reconstruction, two vectors; then the sizes
    assert plans[0] == 5 + 2 * 9
    assert plans[1] >= 5 + 2 * 10
    assert not (folder / "features").exists()


def test_changes_of_equal_norm_are_those_of_the_study(
    measured: tuple[dict[str, Any], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = measured
    monkeypatch.setattr(turned, "SET", "top5")
    assert turned.main([str(folder), "--draws", "2", "--out", str(tmp_path)]) == 0
    study = {row["name"]: row for row in read_json(folder / "judged_top5_joint" / "results.json")["conditions"]}
    for host, found in read_json(tmp_path / f"{folder.parent.name}.json")["hosts"].items():
        assert found["effect"] == study[f"{host}|transplant|top5"]["accuracy_delta"]["pooled"][0]
        first = study[f"{host}|transplant|shuffled directions 0"]["accuracy_delta"]["pooled"][0]
        assert found["draws"][0]["effect"] == first
        assert [draw["norm"] for draw in found["draws"]] == pytest.approx([found["own"]["norm"]] * 2, rel=1e-4)
        assert len({draw["cosine"] for draw in found["draws"]} | {found["own"]["cosine"]}) == 3
    assert f"{folder.parent.name}, into base" in capsys.readouterr().out
    assert turned.main(["--finished", "--out", str(tmp_path)]) == 0
    assert turned.main(["--finished", "--out", str(tmp_path / "none")]) == 2


def test_other_dictionaries_go_through_the_same_stages(
    measured: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = measured[1], tmp_path / "found.json"
    given = [str(folder), "--sizes", "2", "4", "--tokens", "6144", "--work", str(tmp_path / "work"), "--out", str(out)]
    assert dictionaries.main(given) == 0
    printed, record = capsys.readouterr().out, read_json(out)
    assert "difference, into rl" in printed
    assert record["delta_coefficient"] > 1  # the models differ less than their activations vary
    for kind in dictionaries.KINDS:
        own = record["dictionaries"][kind]
        assert {host: sorted(rows["sizes"]) for host, rows in own["hosts"].items()} == {
            "base": ["2", "4"],
            "rl": ["2", "4"],
        }
        settings = read_manifest(tmp_path / "work" / kind / "crosscoder")["config"]
        assert settings["crosscoder"]["model_names"] == ["base", "rl"]
        assert settings["crosscoder"].get("reads") == ("difference" if kind == "difference" else None)
        assert settings["training"].get("delta_coefficient") == (
            record["delta_coefficient"] if kind == "delta" else None
        )
        assert settings["training"]["n_tokens"] == 6144
    explained = {kind: found["fve_of_difference"] for kind, found in record["dictionaries"].items()}
    assert explained["difference"] > explained["crosscoder"]
    assert explained["delta"] > explained["crosscoder"]
    assert dictionaries.main(["--finished", "--out", str(out)]) == 0
    assert dictionaries.main(["--finished", "--out", str(tmp_path / "none.json")]) == 2
    assert dictionaries.main([]) == 2


def test_an_empty_selection_is_a_result(measured: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def select(self: Any) -> None:
        raise SelectionError("On no task.")

    monkeypatch.setattr("mechprobe.pipeline.run.Run.select", select)
    folder = measured[1]
    overrides = [*SMALL, f"prompts.file={folder.with_name('prompts.jsonl')}"]
    record = seeds.measure(shipped("shared-marker"), folder, 0, overrides)
    assert record[seeds.NO_SETS] == "On no task."
    assert record["sets"] == {}
    assert record["site"] == measured[0]["site"]


@pytest.mark.parametrize("recipe", ["shared-marker", "own-markers"])
def test_printed_tables_and_sets_called_causal(measured: tuple[dict[str, Any], Path], recipe: str) -> None:
    names = [f"{rule} by {ranking}" for rule, ranking in SETS]
    gates = {"pretraining": {"head_room": True, "forced_marker": False}}
    record = {**copy.deepcopy(measured[0]), "recipe": recipe, "seed": 3, "lab": {"gates": gates}}
    lines = seeds.overview([record])
    assert lines[1].startswith(f"{recipe} 3")
    assert "FAILED forced_marker" in lines[1]
    assert [line.split("  ")[0] for line in seeds.effects([record], names)[1:]] == [f"{recipe} 3"] * 2
    assert seeds.called_causal([record]) == []
    record["sets"]["top3 by score"]["rows"]["rl"]["simulation"]["verdict"] = "supported"
    wanted = ["own-markers 3: top3 by score in rl on simulation"] if recipe == "own-markers" else []
    assert seeds.called_causal([record]) == wanted
    record["sets"], null = {}, recipe == "own-markers"
    record["left_out"] = [
        {"features": "top5 without simulation", "model": "base", "task": "simulation", "verdict": verdict}
        for verdict in ("supported", "refuted")
    ]
    wanted = ["own-markers 3: top5 without simulation in base on simulation"] if null else []
    assert seeds.called_causal([record]) == wanted
    del record["left_out"]  # as for a lab without a selection
    assert seeds.called_causal([record]) == []


@pytest.mark.usefixtures("short_lab_answers")
def test_a_small_study_is_kept_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labs are real but small; other tests check the measurements."""
    chain = {"site": {"chosen": "resid_post.1", "sufficiency_share": None, "necessity_share": 0.2}, "crosscoder": {"fve": {}},
             "sets": {}, seeds.NO_SETS: "On no task does rl get at least 4 samples right"}  # fmt: skip

    def measure(lab: Path, folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
        assert (lab / "run.toml").is_file()
        assert (seed, overrides) == (1, ["train_sae.k=8"])
        (folder / "cache").mkdir(parents=True)
        return chain

    monkeypatch.setattr(seeds, "measure", measure)
    call = ["--seeds", "1", "--recipes", "shared-marker", "all-weights", "--scale", "small", "--out", str(tmp_path / "out"),
            "--work", str(tmp_path / "work"), "--set", "train_sae.k=8"]  # fmt: skip
    assert seeds.main(call) == 0
    printed = capsys.readouterr().out
    assert "shared-marker 1: nothing to select: On no task does rl get at least 4 samples right" in printed
    assert "Null labs: 0; sets called causal there: none" in printed
    kept = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(kept) == {"shared-marker_seed1_small.json", "all-weights_seed1_small.json"}
    record = read_json(kept["all-weights_seed1_small.json"])
    assert record["lab"]["gates"]["frozen_parts_bit_equal"] is None
    bases = [
        tmp_path / "work" / f"{name}-1" / "lab" / "base" / "manifest.json" for name in ("shared-marker", "all-weights")
    ]
    assert bases[0].read_bytes() == bases[1].read_bytes()  # pre-trained once
    assert not list((tmp_path / "work").glob("*/run/cache"))
    assert str(tmp_path) not in "".join(path.read_text() for path in kept.values())

    monkeypatch.setattr(seeds, "build", lambda *_, **__: pytest.fail("a finished lab was built again"))
    assert seeds.main(call) == 0
    assert capsys.readouterr().out == printed
    assert seeds.main([*call, "--seeds", "1", "2", "--finished"]) == 0  # seed 2 has no result
    assert capsys.readouterr().out == printed
    assert seeds.main([*call, "train_sae.k=4"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_tables_of_the_paper_by_another_count(
    measured: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = measured
    call = ["--run", str(run), "--out", str(tmp_path / "out"), "--sets", "top:3:joint", "--n-random", "1"]
    assert intervene.main(call) == 0
    printed = capsys.readouterr().out
    data = read_json(tmp_path / "out" / "tables.json")
    [found] = data["lab"]
    tasks = found["tasks"]
    assert "calculation" not in tasks
    assert len(found["features"]) == 3
    assert printed == (tmp_path / "out" / "tables.md").read_text()
    assert "| ablate, Qwen3-4B-RL (50 features) | -46.2 | -43.9 |" in printed
    assert "## Table 3: unseen tasks" in printed
    folder = tmp_path / "out" / "top-3_joint"
    places = {"table_2": {task: "table_2" for task in tasks}, "table_3": {task: f"table_3_{task}" for task in tasks}}
    for table, by_task in places.items():
        for task, name in by_task.items():
            cells = {edit: found[table][edit][task] for edit in ("ablate", "clamp:3.0")}
            if "reason" in cells["ablate"]:
                assert "no set: " + cells["ablate"]["reason"] in printed
                continue
            letters = {
                row["condition"]: row[task] for _, row in read_jsonl(folder / name / "outcomes.jsonl") if task in row
            }
            base, rl = letters["base|clean"], letters["rl|clean"]
            edited = {"ablate": letters["rl|ablate|top:3"], "clamp:3.0": letters["base|clamp:3.0|top:3"]}
            right = [i for i, letter in enumerate(rl) if letter == "R"]
            wrong = [i for i, letter in enumerate(base) if letter != "R"]
            for edit, flipped, of in (("ablate", "not R", right), ("clamp:3.0", "R", wrong)):
                count = sum((edited[edit][i] == "R") == (flipped == "R") for i in of)
                value, _, _, n = cells[edit]["flips"]
                assert n == len(of)
                assert value == (pytest.approx(count / n) if n else None)
                gained = [i for i in right if i in wrong]
                count = sum((edited[edit][i] == "R") == (flipped == "R") for i in gained)
                value, _, _, n = cells[edit]["of_gained"]
                assert (n, value) == (len(gained), pytest.approx(count / n) if n else None)
    before = (tmp_path / "out" / "tables.json").read_bytes()
    assert intervene.main(call) == 0
    assert (tmp_path / "out" / "tables.json").read_bytes() == before


def test_a_malformed_set_is_an_error_of_one_sentence(
    measured: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--run", str(measured[1]), "--out", str(tmp_path / "out")]
    assert intervene.main([*call, "--sets", "top:3:best"]) == 2
    captured = capsys.readouterr()
    assert "ranking = 'best' is not accepted" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
    json.dumps(intervene.PAPER)
