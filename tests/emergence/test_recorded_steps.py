"""All stages of a run agree on the steps of last checkpoints, which the folders of the shipped lab record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechprobe.data.config import PromptsConfig
from mechprobe.drift.probe.config import LinearConfig, ProbeConfig
from mechprobe.drift.probe.stage import prepare
from mechprobe.dynamics.checkpoints import run_curves
from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.logprobs.work import LogprobsWork
from mechprobe.emergence.arms import find_arms, recorded_tokens, with_checkpoints
from mechprobe.emergence.stage import recorded_final_steps
from mechprobe.evals.stage import load_outcomes
from mechprobe.lab.summary import shipped
from mechprobe.pipeline import side_stages
from mechprobe.pipeline.run import Run
from mechprobe.records import Outcome, Sample, write_jsonl
from mechprobe.run_config import RunConfig
from mechprobe.stage_folder import Stage
from mechprobe.sweep.config import SweepConfig

STEPS = {"sft": (16, 64, 128, 256, 512), "rl": (12, 20, 24, 28, 40, 60)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the lab with its checkpoints, of which no section has ``final_steps``, and outcomes of two items."""
    lab = shipped("shared-marker")
    models = with_checkpoints({name: str(lab / name) for name in ("base", "sft", "rl")}, lab / "checkpoints")
    dynamics = DynamicsConfig(draws=1000, resamples=0)
    prompts = PromptsConfig(file=str(lab / "prompts.jsonl"))
    config = RunConfig(
        models=models, prompts=prompts, dynamics=dynamics, probe=ProbeConfig(linear=LinearConfig(items=0))
    )
    assert not any(part.final_steps for part in (config.emergence, config.probe, config.sweep))
    records = [
        Outcome(
            sample_id=f"i{item}", task="calculation", model=model, outcome="right", response="ANS 4",
            n_response_tokens=2, finish="stop",
        )
        for model in models
        for item in range(2)
    ]  # fmt: skip
    with Stage.open(tmp_path / "run/evals", name="evaluate", config={}) as stage:
        write_jsonl(stage.folder / "outcomes.jsonl", records)
        write_jsonl(
            stage.folder / "samples.jsonl",
            [Sample(f"i{item}", "calculation", "SIM 7ntnt?", "4").to_json() for item in range(2)],
        )
        stage.finish(outputs=["outcomes.jsonl", "samples.jsonl"])
    return Run(config, tmp_path / "run")


class KeptError(Exception):
    """A stage was called, and its arguments are kept."""


def _kept(given: dict[str, Any], name: str) -> Callable[..., Any]:
    """A stand-in of a stage that keeps its arguments."""

    def stage(*args: Any, **kwargs: Any) -> Any:
        given[name] = (args, kwargs)
        raise KeptError

    return stage


def test_all_stages_read_the_same_final_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    for name, stage in (
        ("emergence", run.emergence), ("dynamics", run.dynamics), ("sweep", run.sweep), ("probe", run.probe), ("log_probs", run.logprobs),
    ):  # fmt: skip
        monkeypatch.setattr(side_stages, name, _kept(given, name))
        with pytest.raises(KeptError):
            stage()
    found: dict[str, dict[str, tuple[float, ...]]] = {}

    family, config = given["emergence"][0][0], given["emergence"][1]["config"]
    dated = config.replace(final_steps=recorded_final_steps(family, config))
    found["emergence"] = {arm.name: arm.steps for arm in find_arms(family.names, dated)}

    outcomes = load_outcomes(run.layout.evals)
    curves, spaced = run_curves(outcomes, given["dynamics"][1]["config"], given["dynamics"][1]["arms"])
    assert set(spaced.values()) == {"steps"}
    found["dynamics"] = {name.split("/")[0]: curve.steps for name, curve in curves.items()}

    swept: SweepConfig = given["sweep"][1]["config"]
    found["sweep"] = {arm: (*steps[:-1], swept.final_steps[arm]) for arm, steps in STEPS.items()}

    args, kwargs = given["probe"]
    chosen = {key: value for key, value in kwargs.items() if key not in ("out", "force")}
    found["probe"] = {arm.name: arm.steps for arm in prepare(*args, **chosen).arms}

    args, kwargs = given["log_probs"]
    work = LogprobsWork.of(*args, **{key: value for key, value in kwargs.items() if key not in ("out", "force")})
    assert {course.spaced_by for course in work.courses().values()} == {"steps"}
    found["logprobs"] = {arm: course.steps for arm, course in work.courses().items()}

    assert found == dict.fromkeys(found, STEPS)


def test_the_shipped_arms_record_no_tokens() -> None:
    lab = shipped("shared-marker")
    assert [recorded_tokens(lab / name) for name in ("sft", "rl", "checkpoints/rl/step_000040")] == [None] * 3
