"""The timeline on an axis of tokens, and with log-probabilities of classes of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import mechprobe as mp
from mechprobe.dynamics.logprobs.result import LogprobsResult
from mechprobe.dynamics.logprobs.rows import model_rows
from mechprobe.files import write_json
from mechprobe.report.config import ReportConfig
from mechprobe.report.timeline.build import build_timeline
from mechprobe.report.timeline.log_probabilities import of_logprobs
from mechprobe.report.timeline.result import Timeline
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import Stage
from tests.dynamics.logprobs.planted import CONFIG, NAMES, random_table
from tests.report.test_timeline import MODELS, STEPS, text_of, weighed

TOKENS = {step: 1000 * step for step in STEPS.values()}


def recorded(models: Path, tokens: dict[int, int]) -> dict[str, Any]:
    """An arm of `mechprobe posttrain` with its checkpoints, and the content of ``run.json`` that names base and the last model."""
    rows = [{"step": step, "n": n, "n_loss": n // 2} for step, n in tokens.items()]
    for step in tokens:
        (models / f"rl/step_{step:06d}").mkdir(parents=True, exist_ok=True)
    write_json(models / "rl/manifest.json", {"stage": "posttrain", "results": {"steps": 80, "tokens": rows}})
    return {"models": {"base": str(models / "base"), "rl": str(models / "rl")}}


def test_the_axis_is_tokens_where_every_checkpoint_has_a_number(tmp_path: Path) -> None:
    weighed(tmp_path / "run")
    run, layout = recorded(tmp_path / "models", TOKENS), RunLayout(tmp_path / "run")
    steps, tokens = (build_timeline(layout, run, "base", axis) for axis in ("steps", "tokens"))
    assert steps is not None
    assert tokens is not None
    assert (steps.axis, tokens.axis, tokens.axis_note) == ("steps", "tokens", "")
    assert steps.tokens == tokens.tokens == {"base": 0, **{name: 1000 * step for name, step in STEPS.items()}}
    assert tokens.arms["rl"].steps == steps.arms["rl"].at == (10, 20, 40, 80)
    assert tokens.arms["rl"].at == tokens.arms["rl"].series[0].at[1:] == (10_000, 20_000, 40_000, 80_000)
    (half,), (as_steps,) = tokens.arms["rl"].panels.halves, steps.arms["rl"].panels.halves
    assert half.step.value == pytest.approx(1000 * as_steps.step.value)
    assert half.step[1:3] == (0, 10_000)

    write_json(tmp_path / "run/run.json", {**run, "report": {"axis": "tokens"}})
    mp.report(tmp_path / "run")
    page = text_of(tmp_path / "run")
    assert "rl: base and the steps 10, 20, 40, 80, at 10,000, 20,000, 40,000, 80,000 tokens." in page
    assert "half of the change (tokens)" in page
    assert Timeline.load(tmp_path / "run/report/timeline.json") == tokens


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ({}, "no number of tokens is recorded for rl@step_000010; mechprobe posttrain records it"),
        ({**TOKENS, 40: 5}, r"the numbers of tokens of rl (10000, 20000, 5, 80000) do not rise"),
    ],
)
def test_the_axis_stays_steps_where_tokens_are_unknown(tmp_path: Path, tokens: dict[int, int], why: str) -> None:
    weighed(tmp_path / "run")
    write_json(tmp_path / "run/run.json", recorded(tmp_path / "models", tokens))
    mp.report(tmp_path / "run", ReportConfig(axis="tokens"))
    found = Timeline.load(tmp_path / "run/report/timeline.json")
    assert (found.axis, found.arms["rl"].at) == ("steps", (10, 20, 40, 80))
    assert f"The axis is optimizer steps and not tokens: {why}." in text_of(tmp_path / "run")
    mp.report(tmp_path / "run")
    assert "not tokens" not in text_of(tmp_path / "run")


def scored(run: Path) -> LogprobsResult:
    """Log-probabilities of random tokens: those of digits rise between steps 10 and 20, the others between 20 and 40."""
    rng = np.random.default_rng(0)
    source = random_table(rng)
    table, n = source.table, len(source.table.ids)
    digits = table.classes == NAMES.index("digits")
    rises = {"base": (0, 0), "rl@step_000010": (0, 0), "rl@step_000020": (2, 0), "rl@step_000040": (2, 2), "rl": (2, 2)}
    own, rows = rng.normal(-5, 1, n), []
    with Stage.open(run / "logprobs", name="logprobs", config={"final_steps": {"rl": 80}}) as stage:
        (stage.folder / "tokens").mkdir()
        for model, (early, late) in rises.items():
            values = (own + np.where(digits, early, late) + rng.normal(0, 0.3, n)).astype(np.float32)
            save_file({"log_prob": values}, stage.folder / f"tokens/{model}.safetensors")
            columns = {"log_prob": values.astype(float), "entropy": np.ones(n), "rank": np.ones(n)}
            rows += list(model_rows(source, model, columns, {}, CONFIG))
        save_file({"trace": table.trace, "class": table.classes}, stage.folder / "tokens/traces.safetensors")
        described = [
            {"id": one.id, "prompt_id": one.prompt_id, "task": one.task, "source": one.source} for one in table.traces
        ]
        write_json(stage.folder / "traces.json", described)
        found = LogprobsResult(
            folder=stage.folder, base="base", models=MODELS, arms={"rl": tuple(STEPS)}, sources=("gold",), classes=NAMES,
            n_traces=len(table.traces), n_tokens=n, teacher="", rows=tuple(rows), histograms=(), excess=(), contrasts=(), learning=(),
            order=(), backtracking=(), verdicts=(), sampler=(), rules={}, notes=(),
        )  # fmt: skip
        found.save(stage.folder / "logprobs.json")
        stage.finish(outputs=["logprobs.json"])
    return found


def test_classes_of_tokens_are_dated_and_ordered(tmp_path: Path) -> None:
    found = scored(tmp_path / "run")
    parts = {part.name.split(" of ")[1].split(" tokens")[0]: part for part in of_logprobs(found)}
    assert list(parts) == ["all", "backtrack", "digits", "other"]
    for part in parts.values():
        for model, point in part.points.items():
            assert part.draws[model].mean() == pytest.approx(point.value, abs=0.02)
            assert np.quantile(part.draws[model], [0.025, 0.975]) == pytest.approx((point.low, point.high), abs=0.04)

    timeline = build_timeline(RunLayout(tmp_path / "run"), {}, "base")
    assert timeline is not None
    halves = {half.name: half for half in timeline.arms["rl"].everything.halves}
    digits, other = (f"log p of {name} tokens (reference responses)" for name in ("digits", "other"))
    assert halves[digits].step[1:3] == (10, 20)
    assert halves[other].step[1:3] == (20, 40)
    assert halves[digits].change.value == pytest.approx(2, abs=0.1)
    assert other in timeline.arms["rl"].everything.before(digits)
    assert [half.name for half in timeline.arms["rl"].panels.halves] == [digits]
    assert "logprobs" in timeline.stages


def test_log_probabilities_without_their_tokens_are_shown_and_not_compared(tmp_path: Path) -> None:
    found = scored(tmp_path / "run")
    (tmp_path / "run/logprobs/tokens/traces.safetensors").unlink()
    parts = of_logprobs(found)
    assert len(parts) == 4
    assert all(part.unranked == "the values of single tokens are not in the folder" and part.points for part in parts)
