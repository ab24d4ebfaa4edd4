"""``mechprobe dynamics`` on sweeps: what the cells of rules, judges, reward models and lm-evaluation-harness give."""

import json
from pathlib import Path

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.dynamics import Dynamics, DynamicsConfig, dip_and_recovery, dynamics
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.statistics import Interval
from mechprobe.sweep.result import CELL_FILE, CellResult
from mechprobe.sweep.stage import sweep
from tests.dynamics.curves import item_curves, swept

MODELS = ("base", "rl@step_000010", "rl@step_000020", "rl@step_000040")
FAST = DynamicsConfig(draws=1000, resamples=0)
SET = ["--set", "dynamics.draws=1000", "--set", "dynamics.resamples=0"]
DIP, RISE = [0.9, 0.88, 0.4, 0.92], [0.3, 0.32, 0.8, 0.85]


def rows(means: list[float], seed: int = 0, n: int = 200, models: tuple[str, ...] = MODELS) -> dict[str, list]:
    """Model → right and wrong of every item, with one response each."""
    curves = item_curves(means, n, seed)
    return {model: curve[:, None].tolist() for model, curve in zip(models, curves, strict=True)}


def turned(values: dict[str, list]) -> dict[str, list]:
    return {model: [[1 - value for value in row] for row in found] for model, found in values.items()}


def test_the_sweep_is_promised_below_dynamics() -> None:
    assert mp.dynamics.sweep is sweep


def test_rules_give_items_lengths_and_cut_responses(tmp_path: Path) -> None:
    dip = rows(DIP)
    source = swept(tmp_path, {"a": dip, "b": rows(RISE, 1)}, cut={"rl@step_000020": set(range(60))})
    found = dynamics(source, out=tmp_path / "d", config=FAST)
    assert list(found.curves) == ["rl/a", "rl/b"]
    curve = found.curves["rl/a"]
    assert (curve.label, found.curves["rl/b"].label) == ("dip_recover_to_base", "monotone_gain")
    assert (curve.steps, curve.n, curve.items, curve.trough_step) == ((10, 20, 40), 200, True, 20)
    right = np.array([np.array(dip[model])[:, 0] for model in MODELS])
    alone = dip_and_recovery([10, 20, 40], right[1:], right[0], config=FAST)
    assert curve.tests.dip_p == pytest.approx(2 * alone.tests.dip_p)  # Holm over two curves
    assert curve.length is not None
    assert curve.length.lengths == (10, 10, 19, 10)
    assert curve.cut is not None
    assert curve.cut.share == pytest.approx((0, 0, 0.3, 0))


def test_lower_is_better_is_the_same_curve_turned(tmp_path: Path) -> None:
    dip = rows(DIP)
    up = dynamics(swept(tmp_path / "u", {"a": dip}), out=tmp_path / "ud", config=FAST).curves["rl/a"]
    source = swept(tmp_path / "v", {"a": turned(dip)}, higher_is_better=False, group="safety", metric="ASR")
    down = dynamics(source, out=tmp_path / "vd", config=FAST).curves["rl/a"]
    assert not down.higher_is_better
    assert (down.label, down.tests, down.trough_step) == (up.label, up.tests, up.trough_step)
    assert down.scores == pytest.approx([1 - score for score in up.scores])
    assert down.base_score == pytest.approx(1 - up.base_score)
    assert down.depth == pytest.approx(up.depth)
    assert down.final_gain == pytest.approx(up.final_gain)
    assert down.trough_score == max(down.scores)
    assert up.length is not None
    assert down.length is not None
    assert down.length.lag == up.length.lag


def test_undecided_verdicts_are_in_no_mean(tmp_path: Path) -> None:
    dip = rows(DIP)
    dip["base"][:10] = [[None]] * 10
    source = swept(tmp_path, {"a": dip}, scorer="judge")
    curve = dynamics(source, out=tmp_path / "d", config=FAST).curves["rl/a"]
    assert curve.base_score == pytest.approx(np.mean(np.array(dip["base"][10:])))
    assert curve.dipped
    assert curve.cut is None


def test_rewards_do_not_depend_on_their_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(size=80)
    means = (0.0, -0.1, -1.0, 1.0)
    rewards = {m: (item + mean + rng.normal(0, 0.3, 80)) for m, mean in zip(MODELS, means, strict=True)}
    found = {}
    for unit in (1.0, 1000.0):
        values = {model: (unit * own)[:, None].tolist() for model, own in rewards.items()}
        source = swept(tmp_path / f"{unit}", {"a": values}, share=False, scorer="reward_model", metric="reward mean")
        found[unit] = dynamics(source, out=tmp_path / f"d{unit}", config=FAST).curves["rl/a"]
    first, second = found.values()
    assert first.unit == "score"
    assert first.label == second.label == "dip_recover_exceed"
    assert second.depth == pytest.approx(1000 * first.depth)
    assert second.tests.dip_p == first.tests.dip_p
    assert first.base_score == pytest.approx(rewards["base"].mean())
    flat = {model: rewards["base"][:, None].tolist() for model in MODELS}
    source = swept(tmp_path / "flat", {"a": flat}, share=False, scorer="reward_model")
    assert dynamics(source, out=tmp_path / "f", config=FAST).curves["rl/a"].label == "no_change"


def test_results_without_documents_have_the_errors_of_the_harness(tmp_path: Path) -> None:
    values = {m: Interval(v, v - 0.0392, v + 0.0392, 500) for m, v in zip(MODELS, (0.6, 0.6, 0.4, 0.61), strict=True)}
    curve = dynamics(swept(tmp_path, {"a": values}), out=tmp_path / "d", config=FAST).curves["rl/a"]
    assert curve.errors == pytest.approx((0.02,) * 4, rel=1e-3)
    assert curve.label == "dip_recover_to_base"
    nan = float("nan")
    unknown = {model: Interval(0.5, nan, nan, 500) for model in MODELS}
    found = dynamics(swept(tmp_path / "n", {"a": values, "b": unknown}), out=tmp_path / "e", config=FAST)
    assert list(found.curves) == ["rl/a"]
    assert found.notes == ("The value of base on b has no interval, so b has no curves.",)


def test_a_value_that_is_no_mean_of_its_documents_keeps_its_own_error(tmp_path: Path) -> None:
    source = swept(tmp_path, {"a": rows(DIP)})
    read = CellResult.load(tmp_path / "benchmarks/a/base" / CELL_FILE)
    assert read.values
    from mechprobe.dynamics.swept import _scores

    cells = [CellResult.load(tmp_path / "benchmarks/a" / model / CELL_FILE) for model in MODELS]
    other = [cell.model_copy(update={"value": Interval(5.0, 4.0, 6.0, 200)}) for cell in cells]
    assert _scores(read.benchmark, other, [[]] * 4).unit == "score"
    assert source.is_dir()


def test_cells_that_changed_or_moved_are_refused(tmp_path: Path) -> None:
    source = swept(tmp_path, {"a": rows(DIP)})
    path = tmp_path / "benchmarks/a/base" / CELL_FILE
    text = path.read_text()
    path.write_text(text.replace('"undecided": 0', '"undecided": 1'))
    with pytest.raises(ArtifactError, match="has changed"):
        dynamics(source, out=tmp_path / "d", config=FAST)
    path.write_text(text)
    (tmp_path / "benchmarks").rename(tmp_path / "cells")
    with pytest.raises(ArtifactError, match="--work"):
        dynamics(source, out=tmp_path / "d", config=FAST)
    assert not (tmp_path / "d").exists()
    assert dynamics(source, out=tmp_path / "d", work=tmp_path / "cells", config=FAST).curves


def test_steps_arms_and_models_that_lack_a_benchmark(tmp_path: Path) -> None:
    models = (*MODELS, "rl", "sft@step_000008")
    values = {
        "a": rows([*DIP, 0.9, 0.5], models=models),
        "b": rows(RISE[1:], models=("rl@step_000010", "rl@step_000020", "rl")),
    }
    source = swept(tmp_path, {**values, "c": rows([0.5, 0.6], models=("base", "rl@step_000010"))})
    found = dynamics(source, out=tmp_path / "d", config=FAST)
    assert list(found.curves) == ["rl/a"]
    assert found.spaced_by == {"rl": "checkpoints"}
    assert [note.partition(",")[0] for note in found.notes] == [
        "Arm sft has one checkpoint on a", "b has no cell of base", "Arm rl has one checkpoint on c"
    ]  # fmt: skip
    known = dynamics(source, out=tmp_path / "e", config=FAST, arms=EmergenceConfig(final_steps={"rl": 80}))
    assert known.curves["rl/a"].steps == (10, 20, 40, 80)
    with pytest.raises(ConfigError, match=r"dynamics\.tasks names 'z'"):
        dynamics(source, out=tmp_path / "f", config=DynamicsConfig(tasks=("z",)))
    with pytest.raises(ConfigError, match="No arm of the sweep"):
        dynamics(swept(tmp_path / "two", {"a": rows([0.5, 0.6], models=("base", "rl"))}), out=tmp_path / "g")


def test_the_command_finds_the_sweep_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    asr = {"base": 0.1, **dict(zip(MODELS[1:], (0.8, 0.5, 0.1), strict=True))}
    values = turned(rows([1 - share for share in asr.values()]))
    source = swept(run, {"<b>|x": values}, higher_is_better=False, group="safety", metric="ASR")
    (run / "run.json").write_text("{}")
    assert main(["dynamics", "--run", str(run), "--dry-run", *SET]) == 0
    assert "1 curves of <b>|x" in capsys.readouterr().out
    assert main(["dynamics", "--run", str(run), *SET]) == 0
    said = capsys.readouterr().out
    assert "Lower is better in <b>|x" in said
    assert len(said.splitlines()) <= 40
    assert Dynamics.load(run / "dynamics").curves["rl/<b>|x"].dipped
    other = ["dynamics", "--sweep", str(source), "--out", str(tmp_path / "o"), "--json", *SET]
    assert main(other) == 0
    assert json.loads(capsys.readouterr().out)["curves"]["rl/<b>|x"]["higher_is_better"] is False
    assert main(["dynamics", "--sweep", str(source), "--evals", "x"]) == 2
    assert main(["dynamics", "--work", "x"]) == 2
    assert main(["dynamics", "--sweep", str(tmp_path / "none"), "--out", str(tmp_path / "p")]) == 2
    assert not (tmp_path / "p").exists()
