"""The family of experiments/chat_family goes from prompts to a verdict: chat template, adapter, thinking, responses that are cut."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mechprobe.cli import main
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.stage import load_outcomes
from mechprobe.interventions.result import InterventionResults
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout

BUILD = Path(__file__).resolve().parents[2] / "experiments" / "chat_family" / "build.py"
SMALLER = {
    "localize.n_per_task": 24,
    "cache.max_prompts": 200,
    "train_sae.n_tokens": 40_000,
    "features.ce_samples": 8,
    "select.n_controls": 2,
    "intervene.n_random": 2,
    "intervene.n_shuffled": 1,
    "intervene.doses": [],
    "intervene.sizes": [],
    "intervene.workers": 1,
    "intervene.n_per_task": 40,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("chat_family", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("chat")
    module.build(folder)
    return folder


@pytest.fixture(scope="module")
def run(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "chat"
    assert main(["doctor", "--config", str(family / "run.toml")]) == 0
    settings = [word for name, value in SMALLER.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", "--config", str(family / "run.toml"), "--run", str(folder), *settings]) == 0
    return folder


def test_base_mostly_fails_and_rl_would_mostly_succeed(family: Path, run: Path) -> None:
    summary = EvaluationSummary.load(RunLayout(run).accuracy)
    for task in ("plus", "minus"):
        base, rl = (summary.accuracy[name][task] for name in ("base", "rl"))
        assert base.value < 0.35
        assert 0.4 < rl.value < 0.6  # what the limit leaves of it
        assert 0.4 < summary.cut["rl"][task] < 0.6
        assert summary.cut["base"][task] < 0.05


def test_shares_cut_equal_a_count_by_hand_and_nothing_cut_is_scored(family: Path, run: Path) -> None:
    """By hand: each model's response without the limit, counted in tokens with its end token."""
    config, layout = RunConfig.of_run(run), RunLayout(run)
    models, tasks = ModelFamily.load(config.models), config.load_tasks()
    chat = AutoTokenizer.from_pretrained(family / "rl")
    outcomes, summary = load_outcomes(layout.evals), EvaluationSummary.load(layout.accuracy)
    results = InterventionResults.load(layout.interventions)
    limit = config.tasks.max_new_tokens
    for model in models:
        for task in tasks:
            asked = [[{"role": "user", "content": sample.prompt}] for sample in task.samples]
            ids = [
                chat.apply_chat_template(a, add_generation_prompt=True, tokenize=True, return_dict=False) for a in asked
            ]
            whole = generate(model, chat, ids, max_new_tokens=80)
            too_long = {s.id for s, r in zip(task.samples, whole, strict=True) if len(r.token_ids) + 1 > limit}
            found = [outcomes.record(model.name, task.name, sample.id) for sample in task.samples]
            assert {record.sample_id for record in found if record.cut} == too_long
            assert all(record.outcome == "unparsed" for record in found if record.cut)
            assert summary.cut[model.name][task.name] == pytest.approx(len(too_long) / len(found))
            right = sum(record.outcome == "right" for record in found)
            assert summary.accuracy[model.name][task.name].value == pytest.approx(right / len(found))
            for record, sample, response in zip(found, task.samples, whole, strict=True):
                answer = response.text.rpartition("</think>")[2].strip()
                assert record.cut or (record.outcome == "right") == (answer == sample.answer)
    assert {row.model for row in results.conditions} == {"base", "rl"}
    clean = next(row for row in results.conditions if (row.model, row.edit) == ("rl", "none"))
    share = clean.cut["minus"]
    assert share is not None
    assert 0.3 < share < 0.7


def test_the_report_says_what_was_cut(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "% cut)" in printed
    assert "Do the features" in printed
    assert "% cut" in (run / "report" / "index.html").read_text(encoding="utf-8")
    manifest = json.loads((run / "evals" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["text"]["chat_template"] is True
