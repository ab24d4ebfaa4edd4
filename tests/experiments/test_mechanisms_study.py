"""The study of mechanisms labs: what it prints from planted records, and a tiny run on the shipped lab."""

import copy
from pathlib import Path
from typing import Any

import pytest

from experiments.lab import mechanisms
from mechprobe.errors import SelectionError
from mechprobe.files import read_json, write_json
from mechprobe.lab.summary import shipped

RIVALS = [
    {"name": "mean at every token", "rank": 1, "share": 0.05, "beaten": True, "damages": False},
    {"name": "pca 1", "rank": 1, "share": 0.12, "beaten": True, "damages": False},
    {"name": "a push that destroys", "rank": 1, "share": 1.1, "beaten": False, "damages": True},
    {"name": "pca 10", "rank": 10, "share": 0.98, "beaten": False, "damages": False},
    {"name": "switched", "rank": 3, "share": None, "beaten": False, "damages": False},
    {"name": "every feature but the set", "rank": None, "share": 0.4, "beaten": False, "damages": False},
]
TINY = [
    "prompts.file={prompts}", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480", "evaluate.n_per_task=24",
    "select.n_controls=1", "select.min_gained=2", "intervene.n_per_task=2", "intervene.n_random=1", "intervene.n_shuffled=1",
    "intervene.sizes=[10]", "intervene.rivals=['pca','complement']", "intervene.rival_samples=2", "cache.generation_batch=64",
]  # fmt: skip


def record(verdict: str = "refuted") -> dict[str, Any]:
    """A record of one seed; ``verdict`` is that of the null."""
    row = {
        "effect": [0.6, 0.5, 0.7], "n": 256, "ceiling": 0.8, "verdict": "supported", "random_mean": 0.1, "random_max": 0.2,
        "equal_norm_max": None,
    }  # fmt: skip
    host = {
        "tasks": {"pooled": row, "two": row},
        "readouts": {"swap": 0.95, "joint": None},
        "main_readout": "swap",
        "comparison": "better than any rival of up to 2 directions",
        "rivals": RIVALS,
        "sizes": {"features of the ranking": [[10, 0.3], [400, 0.9]], "principal components": [[1, 0.12]]},
    }
    null = copy.deepcopy(host)
    null["tasks"]["two"] = {**row, "verdict": verdict}
    null["tasks"]["pooled"] = {**row, "verdict": "this site cannot tell"}
    gates = {
        "pretraining": {"checks": {"head_room": True, "able": False}},
        "outcomes": {"learns": True},
        "ceilings": {},
    }
    accuracy = {
        "base": {"run": 0.1, "two": 0.02},
        "rl@step_000010": {"run": 0.2, "two": 0.3},
        "rl": {"run": 1.0, "two": 0.99},
    }
    return {
        "seed": 7,
        "lab": {"accuracy": accuracy, "gates": gates},
        "main": {"hosts": {"base": host}},
        "null": {"hosts": {"rl": null}},
    }


def test_tables_show_shares_of_the_ceiling() -> None:
    rows = mechanisms.verdicts([record()])
    assert "swap read-out" in rows[0]
    for cell in ("80 points", "95", "12, 25", "supported (swap)", "better than any rival of up to 2 directions"):
        assert cell in rows[1]
    rows = mechanisms.rivals([record()])
    assert "12 pca 1" in rows[1]
    assert "98 pca 10" in rows[1]
    assert "mean at every token" not in rows[1]
    assert rows[0].split()[-1] == "set"
    sizes = mechanisms.sizes([record()])
    assert sizes[0].split()[-3:] == ["1", "10", "400"]
    assert [line.split()[-2:] for line in sizes[1:2]] == [["30", "90"]]
    table = mechanisms.accuracies([record()])
    assert len(table) == 3
    assert table[2].split() == ["7", "rl", "100", "99"]
    assert mechanisms.failed_gates([record()]) == ["7  able"]


def test_a_null_that_is_called_causal_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--finished", "--seeds", "7", "--out", str(tmp_path)]
    for verdict, code in (("refuted", 0), ("supported", 1), ("supported in part", 1)):
        write_json(tmp_path / "seed7.json", {**record(verdict), "settings": {"overrides": [], "scale": "full"}})
        assert mechanisms.main(call) == code
        assert ("seed 7, rl, two" in capsys.readouterr().out) == bool(code)
    assert mechanisms.main([*call, "--set", "train_sae.k=3"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert mechanisms.main(["--finished", "--out", str(tmp_path / "none")]) == 2


def test_nothing_to_select_is_a_result() -> None:
    empty = {
        **record(),
        "main": {"fve": {}, mechanisms.NOTHING: "On no task."},
        "null": {mechanisms.NOTHING: "On no task."},
    }
    for table in (mechanisms.verdicts, mechanisms.rivals, mechanisms.sizes):
        assert table([empty]) == [mechanisms.NOTHING]
    assert mechanisms.called_causal([empty]) == []


@pytest.mark.slow
def test_a_tiny_run_on_the_shipped_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, prompts = shipped("mechanisms"), tmp_path / "prompts.jsonl"
    prompts.write_text("".join((lab / "prompts.jsonl").read_text().splitlines(keepends=True)[:60]))
    settings = [text.format(prompts=prompts) for text in TINY]
    monkeypatch.setattr(mechanisms, "build", lambda *_args, **_: read_json(lab / "manifest.json"))
    real = mechanisms.measure

    def measure(_lab: Path, config: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
        if config == "null.toml":
            raise_selection(monkeypatch)
        return real(lab, config, folder, overrides)

    monkeypatch.setattr(mechanisms, "measure", measure)
    call = ["--seeds", "3", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--set", *settings]
    assert mechanisms.main(call) == 0
    found = read_json(tmp_path / "out" / "seed3.json")
    assert set(found["main"]["hosts"]) == {"base", "rl"}
    base = found["main"]["hosts"]["base"]
    assert {name.partition("(")[0] for name in base["readouts"]} == {"swap", "joint"}
    assert {row["rank"] for row in base["rivals"]} >= {1, 2, 5, None}
    assert set(base["sizes"]) == {"features of the ranking"}
    assert set(base["tasks"]) == {"run", "two", "max", "ends", "list", "peek", "pooled"}
    assert found["null"][mechanisms.NOTHING] == "On no task."
    assert not (tmp_path / "work" / "3" / "run" / "cache").exists()


def raise_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every later ``select`` find nothing."""

    def select(_run: Any) -> None:
        raise SelectionError("On no task.")

    monkeypatch.setattr("mechprobe.pipeline.run.Run.select", select)
