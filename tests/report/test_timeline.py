"""The timeline page: planted orders are found, stages are optional, steps are known or said to be unknown, and names are harmless."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechprobe as mp
from mechprobe.dynamics import DynamicsConfig, dynamics
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import ArmNumbers, measure_curves
from mechprobe.emergence.result import ArmCourse, DictionaryQuality, table_file
from mechprobe.files import read_json, write_json
from mechprobe.records import Outcome, write_jsonl
from mechprobe.report.figures.timeline import _different, timeline_figure
from mechprobe.report.sections.timeline import timeline_sections
from mechprobe.report.timeline.behaviour import of_outcomes
from mechprobe.report.timeline.build import build_timeline
from mechprobe.report.timeline.measured import item_draws
from mechprobe.report.timeline.result import Timeline
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval
from mechprobe.sweep.result import BenchmarkInfo, CellResult, SweepResults
from tests.report.test_drift_page import stands_alone
from tests.weight_files import save, tensors

EVIL = "<script>alert(1)</script>"
STEPS = {"rl@step_000010": 10, "rl@step_000020": 20, "rl@step_000040": 40, "rl": 80}
MODELS = ("base", *STEPS)
RIGHT = dict(zip(MODELS, (0.2, 0.2, 0.2, 0.8, 0.9), strict=True))
LENGTH = dict(zip(MODELS, (5, 5, 20, 21, 21), strict=True))
N = 60


def evaluated(run: Path, models: dict[str, float] = RIGHT) -> None:
    """Outcomes in which responses grow longer between steps 10 and 20, and right between 20 and 40."""
    rng = np.random.default_rng(0)
    luck = {task: rng.permutation(N) / N for task in ("sums", EVIL)}
    records = [
        Outcome(
            sample_id=f"{task}-{item}", task=task, model=model, outcome="right" if luck[task][item] < share else "wrong",
            response="x", n_response_tokens=LENGTH.get(model, 9) + item % 3, finish="stop",
        )
        for model, share in models.items()
        for task in luck
        for item in range(N)
    ]  # fmt: skip
    with Stage.open(run / "evals", name="evaluate", config={}) as stage:
        write_jsonl(stage.folder / "outcomes.jsonl", records)
        stage.finish(outputs=["outcomes.jsonl"])


def weighed(run: Path) -> None:
    base, change = tensors(d=16, ff=24), tensors(d=16, ff=24, seed=1)
    sizes = dict(zip(MODELS, (0, 1.0, 1.1, 1.2, 1.3), strict=True))
    paths = {
        name: save(
            run.parent / "models" / name, {key: value + 0.01 * size * change[key] for key, value in base.items()}
        )
        for name, size in sizes.items()
    }
    mp.drift.weight_statistics(paths, out=run / "weights", config=mp.drift.WeightsConfig(top_k=4))


def swept(run: Path) -> None:
    def info(name: str, group: Any, *, rising: bool) -> BenchmarkInfo:
        return BenchmarkInfo(
            name=name, title=name, group=group, metric="accuracy", scorer="rule", scoring="exact", higher_is_better=rising,
            standin=True, source="here", decoding={}, items="0", n_items=N, n_draws=1,
        )  # fmt: skip

    infos = [
        info("standin:x", "general", rising=True),
        info("standin:y", "own", rising=True),
        info("standin:asr", "safety", rising=False),
    ]
    cells: dict[str, dict[str, CellResult]] = {}
    files: dict[str, dict[str, str]] = {}
    for one in infos:
        cells[one.name], files[one.name] = {}, {}
        for model, share in RIGHT.items():
            values = {f"i{item}": [float(item / N < share)] for item in range(N)}
            refused = {"refused": Interval(1 - share, 0.0, 1.0, N)} if one.group == "safety" else {}
            cell = CellResult(
                benchmark=one,
                model=model,
                value=Interval(share, share - 0.1, share + 0.1, N),
                values=values,
                metrics=refused,
            )
            place = f"{one.name.replace(':', '-')}/{model}/result.json"
            (run / "benchmarks" / place).parent.mkdir(parents=True)
            cell.save(run / "benchmarks" / place)
            cells[one.name][model], files[one.name][model] = cell.model_copy(update={"values": {}}), place
    found = SweepResults(
        base="base", arms={"rl": list(STEPS)}, order=[one.name for one in infos], steps={"base": 0, **STEPS},
        benchmarks={one.name: one for one in infos}, cells=cells, comparisons={one.name: {} for one in infos}, files=files,
    )  # fmt: skip
    with Stage.open(run / "sweep", name="sweep", config={"final_steps": {"rl": 80}}) as stage:
        found.save(stage.folder / "sweep.json")
        stage.finish(outputs=["sweep.json"])


def emerged(run: Path, steps: tuple[int, ...]) -> None:
    """Features of which half change at the second checkpoint and half at the third."""
    base, n = np.ones(40), 40
    late = np.arange(n) >= n // 2
    columns = [base, base, base + ~late, base + 1, base + 1]
    norms = np.stack(columns, axis=1)
    numbers = ArmNumbers(norms, norms[:, :, None], np.ones((n, 4), bool), np.array([0, 0.125, 0.25, 0.5, 1]), 10, 2 / 3)
    course = ArmCourse(
        name="rl", seed=0, base="base", checkpoints=tuple(STEPS), labels=tuple(STEPS), progress=(0, 0.125, 0.25, 0.5, 1),
        spaced_by="steps" if steps else "checkpoints", steps=steps, n_alive=n, kinds={"emerging": n},
        curves=measure_curves(numbers, draws=100, seed=(0,)).intervals(), overlap=np.eye(4).tolist(), jaccard=np.eye(4).tolist(),
        churn=(0.0, 0.0, 0.0), top=10, chance=0.25,
    )  # fmt: skip
    quality = DictionaryQuality(fve={"base": 0.9}, l0=4.0, dead_frac=0.0, device="cpu", mode="store")
    frame = pd.DataFrame({f"norm_{name}": column for name, column in zip(MODELS, columns, strict=True)})
    frame = frame.assign(alive=True, onset=np.where(late, "rl@step_000040", "rl@step_000020"))
    with Stage.open(run / "emergence", name="emergence", config={}) as stage:
        found = mp.Emergence(
            folder=stage.folder, layout="together", arms={"rl": (course,)}, pairs={}, causal={}, quality={"together": quality}, claim=None
        )  # fmt: skip
        found.save(stage.folder / "emergence.json")
        frame.to_parquet(stage.folder / table_file("rl", 0))
        stage.finish(outputs=["emergence.json", table_file("rl", 0)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with evaluate, sweep, weights, emergence and dynamics, and its report."""
    run = tmp_path_factory.mktemp("timeline") / "run"
    evaluated(run)
    swept(run)
    weighed(run)
    emerged(run, (10, 20, 40, 80))
    dynamics(
        run / "evals",
        out=run / "dynamics",
        config=DynamicsConfig(draws=1000, resamples=0),
        arms=EmergenceConfig(final_steps={"rl": 80}),
    )
    write_json(run / "run.json", {"name": f"run {EVIL}", "emergence": {"final_steps": {"rl": 80}}})
    mp.report(run)
    return run


def text_of(run: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (run / "report/timeline.html").read_text(encoding="utf-8")))


def test_a_planted_order_is_found(whole: Path) -> None:
    found = Timeline.load(whole / "report/timeline.json")
    arm = found.arms["rl"]
    assert found.steps == {"base": 0, **STEPS}
    halves = {half.name: half for half in arm.everything.halves}
    assert halves["length (mean of tasks)"].step[1:3] == (10, 20)
    assert halves["right (mean of tasks)"].step[1:3] == (20, 40)
    assert halves["standin:asr"].step[1:3] == (20, 40)
    assert halves["‖ΔW‖ / ‖W‖"].step[1:3] == (0, 10)
    assert halves["change of decoder norms reached"].step[1:3] == (10, 40)  # half of the features change at either step
    assert set(arm.panels.before("‖ΔW‖ / ‖W‖")) == set(halves) & {half.name for half in arm.panels.halves} - {
        "‖ΔW‖ / ‖W‖"
    }
    assert "right (mean of tasks)" in arm.panels.before("length (mean of tasks)")
    assert arm.panels.before("right (mean of tasks)") == []


def test_every_number_of_the_page_is_in_the_json(whole: Path) -> None:
    page, found = text_of(whole), Timeline.load(whole / "report/timeline.json")
    half = next(h for h in found.arms["rl"].panels.halves if h.name == "right (mean of tasks)")
    assert f"{half.step.value:,.1f} [20, 40]" in page
    assert "+70.0 points" in page
    assert "120 items" in page
    assert "Lags: rl" in page
    assert {dip.curve for dip in found.dips} == {"rl/sums", f"rl/{EVIL}"}
    assert all(label in page for label in (dip.label for dip in found.dips))
    assert read_json(whole / "report/manifest.json")["outputs"].keys() >= {
        "timeline.html",
        "timeline.json",
        "figures/timeline.png",
    }


def test_stages_that_have_not_run_name_their_command(whole: Path, tmp_path: Path) -> None:
    assert re.findall(r"Run (mechprobe \w+)", text_of(whole).replace("<code>", "")) == [
        "mechprobe drift",
        "mechprobe probe",
        "mechprobe logprobs",
    ]
    weighed(tmp_path / "run")
    write_json(tmp_path / "run/run.json", {"emergence": {"final_steps": {"rl": 80}}})
    mp.report(tmp_path / "run")
    page = text_of(tmp_path / "run")
    assert page.count("This stage has not run") == 7
    assert "exact" in page


def test_names_are_harmless_and_the_page_stands_alone(whole: Path) -> None:
    page = (whole / "report/timeline.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2  # the page's own
    assert "&lt;script&gt;" in page
    assert stands_alone(page)
    assert 'href="timeline.html"' in (whole / "report/index.html").read_text(encoding="utf-8")


def test_an_arm_whose_steps_are_unknown_is_left_out_and_said(tmp_path: Path) -> None:
    weighed(tmp_path / "run")
    found = build_timeline(RunLayout(tmp_path / "run"), {}, "base")
    assert found is not None
    assert found.arms == {}
    assert found.left_out["rl"].startswith("the optimizer step of a checkpoint is unknown")
    mp.report(tmp_path / "run")
    assert "rl is left out: the optimizer step" in text_of(tmp_path / "run")
    assert not (tmp_path / "run/report/figures/timeline.png").exists()


def test_steps_come_from_settings_then_stages_then_folders(tmp_path: Path) -> None:
    weighed(tmp_path / "run")
    layout, folder = RunLayout(tmp_path / "run"), tmp_path / "models/rl"
    write_json(folder / "manifest.json", {"stage": "posttrain", "results": {"steps": 50}})
    models = {"models": {name: str(tmp_path / "models" / name) for name in MODELS}}

    def last(run: dict[str, Any]) -> int:
        found = build_timeline(layout, run, "base")
        assert found is not None
        return found.steps["rl"]

    assert last(models) == 50
    swept(tmp_path / "run")
    assert last(models) == 80
    assert last({**models, "emergence": {"final_steps": {"rl": 60}}}) == 60


def test_the_base_with_a_forced_beginning_is_no_arm(tmp_path: Path) -> None:
    evaluated(tmp_path / "run", {**RIGHT, "base+prefix": 0.9})
    write_json(tmp_path / "run/run.json", {"emergence": {"final_steps": {"rl": 80}}})
    mp.report(tmp_path / "run")
    assert Timeline.load(tmp_path / "run/report/timeline.json").left_out == {}
    assert "base+prefix" not in text_of(tmp_path / "run")


def test_a_quantity_without_the_checkpoints_is_dotted_and_says_what_adds_them(tmp_path: Path) -> None:
    evaluated(tmp_path / "run")
    base, change = tensors(d=16, ff=24), tensors(d=16, ff=24, seed=1)
    tuned = {key: value + 0.01 * change[key] for key, value in base.items()}
    paths = {name: save(tmp_path / name, kept) for name, kept in (("base", base), ("rl", tuned))}
    mp.drift.weight_statistics(paths, out=tmp_path / "run/weights", config=mp.drift.WeightsConfig(top_k=4))
    write_json(tmp_path / "run/run.json", {"emergence": {"final_steps": {"rl": 80}}})
    mp.report(tmp_path / "run")
    page = text_of(tmp_path / "run")
    assert "rl, weights: there are no values at rl@step_000010, rl@step_000020, rl@step_000040, and the line is" in page
    assert "run mechprobe weights --force." in page
    assert "rl, skills: there are no values" not in page
    found = Timeline.load(tmp_path / "run/report/timeline.json")
    styles = {axes.get_title(loc="left"): axes.lines[0].get_linestyle() for axes in timeline_figure(found).axes}
    assert [style for title, style in styles.items() if title.startswith("weights")] == [":"]
    assert [style for title, style in styles.items() if title.startswith("skills")] == ["-"]


def test_the_stable_share_stands_beside_the_class(whole: Path) -> None:
    found = Timeline.load(whole / "report/timeline.json")
    [dip] = [dip for dip in found.dips if dip.curve == "rl/sums"]
    assert np.isnan(dip.label_share)  # this run has no resamples
    for share, text in ((dip.label_share, "–"), (0.14, "14 %, unstable"), (0.92, "92 %")):
        shown = found.model_copy(update={"dips": (dip.model_copy(update={"label_share": share}),)})
        [table] = next(each for each in timeline_sections(shown) if "Dip" in each.title).tables
        assert table.rows[0][table.head.index("stable")] == text


def test_quantities_of_the_same_samples_are_drawn_together(tmp_path: Path) -> None:
    evaluated(tmp_path)
    found = {part.name: part for part in of_outcomes(tmp_path / "evals")}
    assert found["right (sums)"].n == N
    assert found["right (mean of tasks)"].n == found["length (mean of tasks)"].n == 2 * N
    values = np.random.default_rng(0).random((2, N))
    again = item_draws("task sums", values, share=False)
    np.testing.assert_allclose(again[0], item_draws("task sums", values[:1], share=False)[0])
    assert np.corrcoef(again[0], item_draws("task other", values[:1], share=False)[0])[0, 1] < 0.2
    constant = item_draws("task sums", np.ones((1, N)), share=True)
    assert constant.std() > 0  # few equal items do not prove that all are


def test_a_run_without_checkpoints_has_no_timeline(tmp_path: Path) -> None:
    evaluated(tmp_path / "run", {"base": 0.2, "rl": 0.8})
    index = mp.report(tmp_path / "run")
    assert not (tmp_path / "run/report/timeline.html").exists()
    assert "timeline.html" not in index.read_text(encoding="utf-8")


def test_names_at_lines_leave_out_what_all_share() -> None:
    assert _different(["log p of procedural tokens (text)", "log p of digits tokens (text)"]) == [
        "procedural",
        "digits",
    ]
    assert _different(["a b", "a b c"]) == ["b", "b c"]
