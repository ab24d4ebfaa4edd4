"""docs/speed.md shows what the result files say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, tables
from benchmarks.contestants import CONTESTANTS
from benchmarks.harvest import READERS
from benchmarks.intervene import TARGETS


def test_the_page_is_what_the_result_files_give() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page) == page, "run `python -m benchmarks.tables`"


def spread(value: float) -> dict[str, Any]:
    return {"median": value, "min": 0.5 * value, "max": 2 * value, "all": [value]}


def report(results: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "format": machine.FORMAT,
        "note": "",
        "settings": {"rounds": 7, "threads": 1, "malloc": "default", "quick": False, **settings},
        "machine": {"cpu": "A CPU", "cores": 2, "load_1min": 0.1},
        "versions": {"torch": "2.13.0", "dictionary-learning": None},
        "results": results,
    }


TRAIN = {
    "small": {
        "setting": {
            "d_model": 128, "d_sae": 2048, "k": 32, "batch_size": 4096, "n_models": 3, "precision": "float32",
        },
        "steps": 60,
        "contestants": {
            "sae_training": {
                "tokens_per_s": 20000.0,
                "training_loss": 108.668,
                "held_out": {"fve": 0.691},
                "memory_bytes": {"above": 50 * 2**20},
            },
            "sae_lens": {"tokens_per_s": 5000.0, "training_loss": 108.645, "held_out": {"fve": 0.6912}},
            "dictionary_learning": {"absent": "dictionary-learning is not installed"},
            "dense_crosscoder": {"tokens_per_s": 4000.0, "training_loss": 18.0, "held_out": {"fve": 0.5}},
        },
        "speedup": {"sae_lens": {"wall": spread(4.0)}, "dense_crosscoder": {"wall": spread(5.0)}},
        "loss_difference": {"sae_lens": -0.0002},
        "profile": {
            "kernel": "SparseActive",
            "step_s": 0.2,
            "parts_s": {"encode": 0.12, "decode": 0.06, "rest": 0.02},
            "encode_product_s": 0.1,
            "encode_product_flop_per_s": 6.4e10,
            "bound": "A sentence.",
        },
    }
}  # fmt: skip


def test_the_training_table_by_hand(tmp_path: Path) -> None:
    (tmp_path / "train_cpu.json").write_text(json.dumps(report(TRAIN)))
    lines = tables.section("train", tmp_path).splitlines()
    assert "| ours | 20,000 | – | 108.668 | 0.691 | 50 MiB |" in lines
    assert "| sae-lens | 5,000 | 4.00 (2.00 to 8.00) × | 108.645 | 0.691 | – |" in lines
    assert "| dictionary_learning: dictionary-learning is not installed | – | – | – | – | – |" in lines
    assert any("another objective" in line and "5.00 (2.50 to 10.00) ×" in line for line in lines)
    assert "| encode | 120.00 | 60% |" in lines
    assert "| *the encoder's product alone (floor)* | 100.00 | 50% |" in lines
    assert "dictionary-learning absent" in lines[-1]
    assert "A CPU, 1 of 2 cores" in lines[-1]


def test_results_of_quick_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_cpu.json").write_text(json.dumps(report(TRAIN, quick=True)))
    with pytest.raises(tables.TablesError, match=r"train_cpu\.json.* --quick"):
        tables.section("train", tmp_path)


@pytest.mark.parametrize("name", tables.TABLES)
def test_what_is_not_measured_is_said_with_its_command(name: str, tmp_path: Path) -> None:
    file, _, command = tables.TABLES[name]
    (tmp_path / file).write_text('{"results": {}}')  # of another format
    text = tables.section(name, tmp_path)
    assert text.startswith("Not measured")
    assert command in text
    assert f"artifacts/benchmarks/{file}" in command or name == "gpu"  # named after the card


def test_the_other_tables_are_written(tmp_path: Path) -> None:
    share = {"store": spread(0.96)}
    reads = {"mb_per_s": {"store": spread(9000), "memmap": spread(9400)}, "share_of_memmap": share}
    training = {
        "shape": {"d_model": 128, "d_sae": 2048},
        "tokens_per_s": {"store": spread(19000), "memory": spread(20000)},
        "share_of_memory": {"store": spread(0.95)},
    }
    batches = {"tokens_per_s": {"store": spread(1e6), "per_token_dataloader": spread(3e4)}}
    store = {"reads": {"sequential_8192": reads}, "batches": batches, "training": training}
    (tmp_path / "store_cpu.json").write_text(json.dumps(report(store)))
    text = tables.section("store", tmp_path)
    assert "| sequential_8192: store | 9,000 (4,500 to 18,000) | 96% (48% to 192%) |" in text
    assert "| store | 19,000 (9,500 to 38,000) | 95.0% (47.5% to 190.0%) |" in text
    ways = {"collect_plain": {"tokens_per_s": 950.0, "share_of_bare": spread(0.95)}, "reader_bridge": {"absent": "why"}}
    model = {"layers": 8, "d_model": 512, "site": "resid_post.3"}
    pipeline = {"tokens_per_s": spread(500)}
    lab = {"model": model, "ways": ways, "bits_equal_bare_eager": {"plain": True}, "pipeline": pipeline}
    (tmp_path / "harvest_cpu.json").write_text(json.dumps(report({"lab": lab})))
    text = tables.section("harvest", tmp_path)
    assert "| collect_shard, plain reader | 950 | 95% (48% to 190%) |" in text
    assert text.index("our TransformerBridge reader: why") < text.index("collect_shard, plain reader")
    edits = {
        "model": {"layers": 3, "d_model": 128},
        "setting": {"site": "resid_post.2", "prompts": 64, "new_tokens": 48, "d_sae": 1024},
        "features_edited": 50,
        "ways": {"empty_hook": {"tokens_per_s": 9100.0, "share_of_plain": spread(0.98)}},
    }
    (tmp_path / "intervene_cpu.json").write_text(json.dumps(report({"lab": edits})))
    text = tables.section("intervene", tmp_path)
    assert "| hooks that change nothing | 9,100 | 98% (49% to 196%) |" in text
    assert "50 of 1024 features" in text


def test_every_contestant_and_way_has_a_name() -> None:
    assert set(tables.NAMES) == set(CONTESTANTS)
    ways = {f"{kind}_{reader}" for kind in ("reader", "collect") for reader in READERS}
    assert set(tables.WAYS) == ways | {"bare_eager", "bare_sdpa"}
    assert set(TARGETS) < set(tables.EDIT_WAYS)


def test_markers_must_match_the_tables(tmp_path: Path) -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    with pytest.raises(tables.TablesError, match="markers"):
        tables.filled(page.replace("<!-- table store -->", ""), tmp_path)
    with pytest.raises(tables.TablesError, match="no end marker"):
        tables.filled(page.replace("<!-- end store -->", ""), tmp_path)


def test_nothing_outside_the_markers_is_touched(tmp_path: Path) -> None:
    page = tables.PAGE.read_text(encoding="utf-8").replace("# Speed", "# Speed \\1 \\g<0>")
    assert "# Speed \\1 \\g<0>" in tables.filled(page, tmp_path)


def test_malloc_is_settled_by_starting_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda _program, _arguments, environment: started.append(dict(environment)))
    for name in machine.TUNED_MALLOC:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    machine.settle_environment("default")
    assert started == []
    machine.settle_environment("tuned")
    assert machine.TUNED_MALLOC.items() <= started[0].items()
    for name, value in machine.TUNED_MALLOC.items():
        monkeypatch.setenv(name, value)
    machine.settle_environment("tuned")
    assert len(started) == 1
    machine.settle_environment("default")
    assert not set(machine.TUNED_MALLOC) & set(started[1])


def test_the_machine_is_described_without_its_name() -> None:
    import socket

    found = machine.describe_machine()
    assert found["cores"]
    assert found["cpu"]
    assert socket.gethostname() not in json.dumps(found).split('"')
