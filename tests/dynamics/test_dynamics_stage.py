"""``mechprobe dynamics``: published files, outcomes of checkpoints, the command, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from mechprobe.cli import main
from mechprobe.cli.dynamics import STABLE, dynamics_lines
from mechprobe.dynamics import Dynamics, DynamicsConfig, draw_curves, dynamics
from mechprobe.dynamics.published import read_published
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError, ConfigError, InputError
from tests.dynamics.curves import PUBLISHED, QUICK, evaluated

DIP = {"base": 0.9, "rl@step_000010": 0.88, "rl@step_000020": 0.6, "rl@step_000040": 0.75, "rl": 0.9}
FAST = DynamicsConfig(**QUICK)
SET = ["--set", "dynamics.draws=1000", "--set", "dynamics.resamples=20"]


def test_published_file_becomes_a_stage(tmp_path: Path) -> None:
    found = dynamics(PUBLISHED / "qwen3_4b.csv", out=tmp_path / "d", config=FAST)
    assert {name: curve.label for name, curve in found.curves.items()} == {
        "AIME24": "monotone_gain", "IFEval": "dip_recover_to_base", "LCB": "dip_recover_exceed", "MATH500": "dip_recover_exceed"
    }  # fmt: skip
    assert all(curve.adjusted_over == 4 for curve in found.curves.values())
    assert (tmp_path / "d/dynamics.png").read_bytes().startswith(b"\x89PNG")
    written = (tmp_path / "d/dynamics.json").stat().st_mtime_ns
    assert dynamics(PUBLISHED / "qwen3_4b.csv", out=tmp_path / "d", config=FAST) == found
    assert (tmp_path / "d/dynamics.json").stat().st_mtime_ns == written
    assert set(found.to_pandas()["curve"]) == set(found.curves)
    assert len(draw_curves(found.curves).axes) == 6


def test_outcomes_of_checkpoints(tmp_path: Path) -> None:
    evals = evaluated(tmp_path / "evals", DIP)
    found = dynamics(evals, out=tmp_path / "d", config=FAST, arms=EmergenceConfig(final_steps={"rl": 80}))
    curve = found.curves["rl/sums"]
    assert curve.label == "dip_recover_to_base"
    assert curve.steps == (10, 20, 40, 80)
    assert (curve.trough_step, curve.items, curve.n) == (20, True, 300)
    assert found.spaced_by == {"rl": "steps"}
    assert curve.length is not None
    assert curve.length.surge_ratio == 1
    unknown = dynamics(evals, out=tmp_path / "e", config=FAST)
    assert unknown.curves["rl/sums"].steps == (1, 2, 3, 4)
    assert unknown.spaced_by == {"rl": "checkpoints"}


def test_cut_responses_of_a_run_explain_its_dip(tmp_path: Path) -> None:
    flat = dict.fromkeys(DIP, 0.9)
    evals = evaluated(tmp_path / "evals", flat, cut={"rl@step_000020": 0.5})
    curve = dynamics(evals, out=tmp_path / "d", config=FAST).curves["rl/sums"]
    assert curve.cut_explains
    assert curve.length is not None
    assert curve.length.surge_step == 2
    assert curve.length.lag == 0


def test_command_on_a_table_and_on_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(PUBLISHED / "qwen3_1.7b.csv")
    assert main(["dynamics", "--table", table, "--out", str(tmp_path / "d"), "--dry-run"]) == 0
    assert "GPQA: 8 checkpoints, n = 198" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()
    assert main(["dynamics", "--table", table, "--out", str(tmp_path / "d"), *SET]) == 0
    said = capsys.readouterr().out
    assert "dip_no_recovery" in said
    assert len(said.splitlines()) <= 40
    evals = str(evaluated(tmp_path / "evals", DIP))
    command = ["dynamics", "--evals", evals, "--out", str(tmp_path / "e"), *SET]
    assert main([*command, "--dry-run"]) == 0
    assert "1 curves of sums" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["curves"]["rl/sums"]["label"] == "dip_recover_to_base"
    assert Dynamics.load(tmp_path / "e").curves["rl/sums"].dipped


def test_a_label_that_few_resampled_curves_have_is_marked_and_nan_is_not_printed(tmp_path: Path) -> None:
    found = dynamics(evaluated(tmp_path / "evals", DIP), out=tmp_path / "d", config=FAST)
    [(name, curve)] = found.curves.items()
    assert curve.length is not None

    def said(share: int, spearman: float) -> list[str]:
        labels = {curve.label: share, "no_change": 100 - share}
        length = curve.length and curve.length.model_copy(update={"spearman": spearman})
        shown = curve.model_copy(update={"resampled_labels": labels, "length": length})
        return dynamics_lines(found.model_copy(update={"curves": {name: shown}}))

    lines = said(14, float("nan"))
    assert lines[1].split()[:2] == ["label", "stable"]
    assert f"{curve.label}  14 %, unstable  " in lines[2]
    assert STABLE in lines
    assert "nan" not in " ".join(lines)
    lines = said(92, 0.2)
    assert f"{curve.label}  92 %  " in lines[2]
    assert "Spearman with the score +0.20" in " ".join(lines)


def test_the_figure_has_one_axis_for_shares_a_legend_outside_and_base_at_0(tmp_path: Path) -> None:
    found = dynamics(evaluated(tmp_path / "evals", DIP), out=tmp_path / "d", config=FAST)
    [curve] = found.curves.values()
    flat = curve.model_copy(update={"scores": (0.0,) * len(curve.scores), "base_score": 0.0, "length": None})
    shaky = curve.model_copy(update={"resampled_labels": {"no_change": 1}})
    figure = draw_curves({"rl/" + "long_name_" * 9: shaky, "rl/flat": flat})
    figure.draw_without_rendering()
    first, second = figure.axes[:2]
    assert first.get_ylim() == second.get_ylim()
    assert first.get_legend() is second.get_legend() is None
    [legend] = figure.legends
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)  # pyright: ignore[reportOptionalMemberAccess]
    assert "(unstable: 0 %)" in first.get_title().replace("\n", " ")
    assert first.title.get_window_extent().width <= figure.bbox.width / 2
    assert first.get_xticks()[0] == 0
    assert any(
        len(np.atleast_1d(line.get_xdata())) > 2 and np.atleast_1d(line.get_xdata())[0] == 0 for line in first.lines
    )


def test_json_file_with_cut_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    curve = {
        "base": 0.6,
        "scores": [0.6, 0.3, 0.58, 0.6],
        "n": 500,
        "cut": [0.02, 0.02, 0.51, 0.05, 0.02],
        "lengths": [9, 10, 60, 20, 12],
    }
    path.write_text(json.dumps({"steps": [1, 2, 4, 8], "curves": {"a": curve}}))
    found = dynamics(path, out=tmp_path / "d", config=FAST).curves["a"]
    assert found.cut_explains
    assert found.unit == "share"
    assert found.length is not None
    assert found.length.lag == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "steps,A\nbase,1\n", "first line"),
        ("a.csv", "step,A,A\nbase,1,1\n", "different names"),
        ("a.csv", "step,A\nn,10\n1,50\n", "no line 'base'"),
        ("a.csv", "step,A\nbase,50\n1,50\n", "no line 'n'"),
        ("a.csv", "step,A\nbase,50\nn,10\n1,x\n2,5\n", "'x' in the line '1', column A"),
        ("a.csv", "step,A\n0,50\nn,10\n1,50\n2,5\n", "has the step 0 and no line 'base'"),
        ("a.csv", "step,A\nbase,50\nn,nan\n1,50\n2,5\n", "n of A is nan; give a whole number"),
        ("a.csv", "step,A\nbase,50\nn,inf\n1,50\n2,5\n", "n of A is inf"),
        ("a.csv", "step,A\nbase,50\nn,1e30\n1,50\n2,5\n", "n of A is 1e30"),
        ("a.csv", "step,A\nbase,50\nn,500.7\n1,50\n2,5\n", r"n of A is 500\.7"),
        ("a.csv", "step,A\nbase,50\nn,10\nresponses,inf\n1,50\n2,5\n", "responses of A is inf"),
        ("a.csv", "step,A\nbase,50\nn,10\nnan,50\n2,5\n", r"steps \(nan, 2\) must be finite"),
        ("a.csv", "step,A\nbase,50\nn,10\n1,50\n", "A is not tested: checkpoints beside base: 1, and a curve needs 2"),
        ("a.csv", "step,\nbase,50\nn,10\n1,50\n2,5\n", "curve without a name"),
        ("a.csv", "step,A\x1b[31m\nbase,50\nn,10\n1,50\n2,5\n", "control character"),
        ("a.json", '{"steps": [1, 1e999], "curves": {"A": {"base": 1, "scores": [1, 1], "n": 9}}}', "must be finite"),
        ("a.json", '{"steps": [true, 2], "curves": {"A": {"base": 1, "scores": [1, 1], "n": 9}}}', "no list of steps"),
        ("a.json", '{"steps": [1, 2], "curves": {"A": {"base": 1, "scores": [1, 1], "n": [9]}}}', "n has the shape"),
        (
            "a.json",
            '{"steps": [1, 2], "curves": {"A": {"base": 1, "scores": [1, 1], "n": 1e30}}}',
            "n of curve A must be a whole number",
        ),
        (
            "a.json",
            '{"steps": [1, 2], "curves": {"A": {"base": 1, "scores": [1, 1], "n": 9, "responses": true}}}',
            "whole number",
        ),
        (
            "a.json",
            '{"steps": [1, 2], "curves": {"A": {"base": 1, "scores": [1, 1], "n": 9, "se": 1}}}',
            "has n and se",
        ),
        ("a.json", '{"steps": [1, 2], "curves": {"A": {}, "A": {}}}', "'A' comes twice"),
        ("a.csv", "step,A\nbase,50\nn,10\n1,50\n1,50\n", "twice"),
        ("a.csv", "step\nbase\nn\n1\n2\n", "no curve"),
        ("a.csv", "step,A\nbase,50\nn,10\n1,500\n2,50\n", "curve A: A score of 500"),
        ("a.json", "{", "no JSON"),
        ("a.json", "[]", "no object 'curves'"),
        ("a.json", '{"curves": {"A": {"base": 1}}}', "needs base and scores"),
        ("a.json", '{"curves": {"A": {"base": 1, "scores": [1], "nn": 1}}}', "unknown key 'nn'"),
        ("a.json", '{"curves": {"A": {"base": 1, "scores": [1], "n": 1}}}', "no list of steps"),
    ],
)
def test_unusable_files_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        dynamics(tmp_path / name, out=tmp_path / "d", config=FAST)
    assert not (tmp_path / "d").exists()


def test_outcomes_without_checkpoints_or_task_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    evals = evaluated(tmp_path / "evals", {"base": 0.5, "rl": 0.6}, n=5)
    with pytest.raises(ConfigError, match="no checkpoint among the evaluated models"):
        dynamics(evals, out=tmp_path / "d", config=FAST)
    with pytest.raises(ConfigError, match=r"dynamics\.tasks names 'other'"):
        dynamics(evals, out=tmp_path / "d", config=DynamicsConfig(tasks=("other",)))
    assert not (tmp_path / "d").exists()


def test_an_empty_cell_leaves_the_step_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,A,B\nbase,50,40\nn,10,20\n10,50,41\n20,,42\n40,51,43\n")
    found = read_published(tmp_path / "a.csv")
    assert found["A"]["steps"] == [10, 40]
    assert found["B"]["scores"] == [41, 42, 43]
    assert found["B"]["n"] == 20


def test_a_curve_with_one_checkpoint_is_named_and_the_others_are_tested(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,A,B\nbase,50,40\nn,10,20\n10,50,\n20,48,42\n40,51,\n")
    found = dynamics(tmp_path / "a.csv", out=tmp_path / "d", config=FAST)
    assert list(found.curves) == ["A"]
    assert found.notes == ("B is not tested: checkpoints beside base: 1, and a curve needs 2.",)
    assert Dynamics.load(tmp_path / "d").notes == found.notes


def test_folders_of_other_stages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    with pytest.raises(ArtifactError):
        dynamics(tmp_path / "evals", out=tmp_path / "d", config=FAST)
    with pytest.raises(ArtifactError, match="not a dynamics stage"):
        Dynamics.load(evaluated(tmp_path / "e", DIP))
    other = dynamics(PUBLISHED / "qwen3_4b.csv", out=tmp_path / "o", config=FAST)
    with pytest.raises(ArtifactError):
        dynamics(other.folder, out=tmp_path / "d", config=FAST)
    assert main(["dynamics", "--table", str(tmp_path / "none.csv"), "--evals", "x"]) == 2
