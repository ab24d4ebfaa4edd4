"""The costs of stages: every one is there, follows its counts, and is shared by devices as its work is; committed plans and the page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan_against_runs
from mechprobe.cli import main
from mechprobe.errors import InputError, ModelError
from mechprobe.planning import formulas
from mechprobe.planning.beside import SIDE, dictionary_seeds
from mechprobe.planning.cards import CARDS
from mechprobe.planning.page import report_cost
from mechprobe.planning.plan import plan_config
from mechprobe.planning.posttraining import TrainingWork, training_cost
from mechprobe.planning.rates import FEW, KITS, UNITS, Rates
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.stages import STAGES
from mechprobe.run_config import RunConfig

ROOT = Path(__file__).parents[2]
READY = ROOT / "artifacts" / "real_size"
LLAMA = READY / "llama3_1_8b.config.json"
H100 = Rates.of_card(CARDS["H100"])


def scene_of(*overrides: str, devices: int = 1) -> Scene:
    config = RunConfig.build(
        READY / "llama3_1_8b.toml", ["train_sae.mode=cache", "cache.max_tokens=1000000", *overrides]
    )
    plan = plan_config(config, H100, devices=devices, model_config=LLAMA)
    return Scene(config, plan.shapes, plan.work, H100, devices)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of()


@pytest.mark.parametrize("name", ["qwen3_4b", "qwen2_5_7b", "llama3_1_8b"])
def test_committed_plans_are_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    given = [
        "--config",
        f"artifacts/real_size/{name}.toml",
        "--model-config",
        f"artifacts/real_size/{name}.config.json",
    ]
    assert main(["plan", *given, "--card", "H100"]) == 0
    assert capsys.readouterr().out == (READY / f"{name}.plan.txt").read_text(encoding="utf-8")


def test_a_large_dictionary_divides_its_latents(scene: Scene) -> None:
    large = ("train_sae.d_sae=131072", "train_sae.batch_size=4096")
    costs = [STAGES["train-sae"](scene_of(*large, devices=n)) for n in (1, 2, 8)]
    weights = formulas.crosscoder_weights(3 * 4096, 131072)
    rows = 4 * 3 * 4096 * 3 * 4096
    for n, cost in zip((1, 2, 8), costs, strict=True):
        parts = 16 * weights / n + 2 * 4 * 4096 * 131072 / n + rows
        assert cost.device_bytes == pytest.approx(H100.context + parts, rel=1e-3)
    assert costs[0].device_bytes < H100.memory  # it fits on a card of 80 GB alone
    seconds = [cost.seconds or 0 for cost in costs]
    assert seconds[0] > seconds[1] > seconds[2] > seconds[0] / 8


def test_divided_tokens_leave_the_whole_dictionary_on_every_device() -> None:
    given = ("train_sae.d_sae=131072", 'train_sae.training.divide="tokens"')
    alone, both = (STAGES["train-sae"](scene_of(*given, devices=n)) for n in (1, 2))
    assert alone.device_bytes == both.device_bytes


@pytest.mark.parametrize("name", [name for name in SIDE if name != "emergence"])
def test_every_side_stage_has_memory_and_a_time_or_a_reason(name: str, scene: Scene) -> None:
    cost = SIDE[name](scene, {})
    assert cost.host_bytes >= H100.holds("program")
    assert (cost.seconds is not None and cost.seconds > 0) or "depends on" in cost.note


def test_side_stages_follow_their_counts(scene: Scene) -> None:
    def seconds(name: str, plan: dict[str, Any]) -> float:
        return SIDE[name](scene, plan).seconds or 0.0

    assert seconds("drift", {"tokens": {"rl": {"own": 10**6}}}) > seconds("drift", {"tokens": {"rl": {"own": 10**5}}})
    twenty, ten, longer = (
        {"curves": dict.fromkeys(map(str, range(n)), checkpoints)} for n, checkpoints in ((20, 4), (10, 4), (10, 12))
    )
    assert min(seconds("dynamics", twenty), seconds("dynamics", longer)) > seconds("dynamics", ten)
    one = {"n_items": 64, "n_draws": 1}
    assert seconds("sweep", {"benchmarks": [one, one]}) > seconds("sweep", {"benchmarks": [one]})
    weights = {"bytes": {"base": 10}, "seconds": 30.0, "memory": 7, "exact": 1, "estimated": 0}
    assert seconds("weights", weights) == pytest.approx(
        30 + SIDE["weights"](scene, {**weights, "seconds": 0.0}).seconds
    )


def test_side_stages_are_listed_where_the_settings_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--card", "H100", "--json", "--set", "drift.top=5", "--set", "weights.top_k=4"]) == 0
    names = [row["stage"] for row in json.loads(capsys.readouterr().out)["stages"]]
    assert names[-2:] == ["drift", "weights"]
    assert "sweep" not in names


def test_further_dictionaries_add_their_stages(scene: Scene) -> None:
    two, three = (dictionary_seeds(scene, n) for n in (2, 3))
    assert three.flop == 2 * two.flop
    assert three.seconds == pytest.approx(2 * (two.seconds or 0))


def test_posttraining_counts_forward_and_backward_passes() -> None:
    shape = ModelShape.of_file(LLAMA)
    work = TrainingWork("sft", 10, 4, 4, 50, 50, 0, shape.parameters, 1, 0)
    cost = training_cost(shape, work, H100)
    tokens = 10 * 4 * 100
    expected = 3 * (formulas.forward_flop(shape, tokens, 100) + formulas.head_flop(shape, tokens))
    assert cost.flop == pytest.approx(expected)
    assert cost.device_bytes > 16 * shape.parameters
    assert training_cost(shape, replace(work, method="grpo"), H100).flop > cost.flop


def test_the_report_grows_with_its_features() -> None:
    few, many = (report_cost(H100, n_features=n).seconds or 0 for n in (10, 1000))
    assert many > few > H100.started("page")


def test_published_rates_have_every_kit_and_unit() -> None:
    assert set(H100.start_s) == set(H100.held) == set(KITS)
    assert set(H100.units) == set(UNITS)


def test_small_calls_are_slower() -> None:
    rates = replace(H100, device="cpu", blocks={"float32": {"128": (1e9, 1e10)}})
    assert rates.block_rate("float32", 128, FEW) == pytest.approx(1e9)
    assert rates.block_rate("float32", 128, 10**6) == pytest.approx(1e10)
    assert 1e9 < rates.block_rate("float32", 128, 200) < 1e10


def test_report_prints_its_cost_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main(["report", "--run", str(tmp_path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"][0]["host_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_page_has_the_table_of_the_result_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = plan_against_runs.PAGE.read_text(encoding="utf-8")
    assert plan_against_runs.filled(page) == page, "run `python -m benchmarks.plan_against_runs table`"


def test_the_table_names_what_misses_the_limit() -> None:
    row = {"said": {"host_bytes": 2e9, "seconds": 10.0}, "came": {"bytes": 1e9, "seconds": 10.0}}
    row |= {"memory_off": 1.0, "seconds_off": 0.0, "load": 0.1}
    assert plan_against_runs.line_of("cache", row)[-1] == "memory"
    report = {"families": {"lab": {"cache": row}}, "machine": {"cpu": "x", "cores": 2}, "settings": {"threads": 1}}
    assert "| cache | 2,000 / 1,000 | +100% |" in plan_against_runs.markdown(report)


def test_a_stream_leaves_the_rows_that_it_keeps_in_the_store() -> None:
    config = RunConfig.build(READY / "llama3_1_8b.toml", ["train_sae.mode=stream"])
    plan = plan_config(config, H100, model_config=LLAMA)
    assert plan.work.rows > plan.stored_rows == 2 * config.train_sae.kept.rows  # pyright: ignore[reportOptionalMemberAccess]
    assert f"{plan.stored_rows:,} tokens in the store" in plan.lines[2]


@pytest.mark.parametrize("key", ["prompts", "tasks"])
def test_a_damaged_file_is_refused_and_a_missing_one_is_assumed(key: str, tmp_path: Path) -> None:
    file, given = tmp_path / "some.jsonl", [f"{key}.file={tmp_path / 'some.jsonl'}"]
    plan = plan_config(RunConfig.build(READY / "llama3_1_8b.toml", given), H100, model_config=LLAMA)
    assert any(f"are assumed, because: {file} does not exist" in note for note in plan.work.notes)
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt":\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"some\.jsonl:2 is not a JSON object"):
        plan_config(RunConfig.build(READY / "llama3_1_8b.toml", given), H100, model_config=LLAMA)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    config = RunConfig.build(READY / "llama3_1_8b.toml", models={"base": path})
    with pytest.raises(ModelError, match=rf"^Model base: .*{Path(path).name} does not exist; give a model folder"):
        plan_config(config, H100)


def test_a_calibration_is_not_measured_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--calibrate", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder; give the path of a file with --out." in capsys.readouterr().err
