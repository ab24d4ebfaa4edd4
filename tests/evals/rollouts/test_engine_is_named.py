"""Features selected from imported responses, edited with transformers: every result says so."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mechprobe.cli.selection_lines import selection_lines
from mechprobe.cli.stage_lines import accuracy_lines
from mechprobe.cli.summary import intervention_summary
from mechprobe.errors import ConfigError
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.files import read_json
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.stage import intervene
from mechprobe.models.family import ModelFamily
from mechprobe.report.stage import report
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.result import SelectionSummary
from mechprobe.selection.stage import select_features
from tests.builders import build_family
from tests.planted import SITE, answered_by_rl, cause_and_decoy, plant, saying, whole_at_the_limit

SENTENCE = (
    "Outcomes come from vllm 0.11.2 (rollouts.jsonl); clean and edited arms of interventions run with transformers."
)


@pytest.fixture(scope="module", autouse=True)
def _whole_responses() -> Iterator[None]:
    with whole_at_the_limit():
        yield


def test_from_import_to_report(tmp_path: Path) -> None:
    paths = build_family(tmp_path / "models", "neox", names=("base", "rl"), noise=0.0)
    direction = saying(paths["base"], 40)
    plant(paths["rl"], direction)
    family, crosscoder = ModelFamily.load(paths), cause_and_decoy(direction, ("base", "rl"), 48)
    tasks = [answered_by_rl(family, name, form, 14) for name, form in {"sum": "{}+{}=", "pair": "x{}y{}"}.items()]
    own = evaluate_outcomes(family, tasks, tmp_path / "own")
    prompts = {sample.id: sample.prompt for task in tasks for sample in task.samples}
    lines = [
        {"id": r.sample_id, "model": r.model, "prompt": prompts[r.sample_id], "response": r.response, "finish_reason": r.finish}
        for r in own.records
    ]  # fmt: skip
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(map(json.dumps, [{"engine": "vllm", "version": "0.11.2"}, *lines])))

    layout = RunLayout(tmp_path / "run")
    config = EvaluateConfig(generation="import", imports=(str(file),))
    outcomes = evaluate_outcomes(family, tasks, layout.evals, config)
    assert [(r.outcome, r.response) for r in outcomes.records] == [(r.outcome, r.response) for r in own.records]
    assert (own.engine, outcomes.engine) == ("", SENTENCE)
    assert SENTENCE in accuracy_lines(EvaluationSummary.load(layout.accuracy))

    settings = SelectConfig(rule="top:2", n_controls=1, n_bootstrap=0, min_gained=2)
    selection = select_features(crosscoder, family, outcomes, site=SITE, out=layout.selection, config=settings)
    plain = select_features(crosscoder, family, own, site=SITE, out=tmp_path / "plain", config=settings)
    assert (selection.features, selection.outcomes_from) == (plain.features, SENTENCE)
    assert plain.outcomes_from == ""
    assert selection.choose("top:1").outcomes_from == SENTENCE
    assert SENTENCE in selection_lines(SelectionSummary.load(layout.selected))

    edits = InterveneConfig(
        features="top:1", edits_tuned=("ablate",), edits_base=(), n_random=1, n_shuffled=1, doses=(), sizes=(), n_per_task=4,
        collateral_texts=0,
    )  # fmt: skip
    results = intervene(family, crosscoder, selection, tasks, layout.interventions, edits)
    assert results.outcomes_from == SENTENCE
    assert SENTENCE in intervention_summary(results.to_dict())
    report(layout.folder)
    assert SENTENCE in read_json(layout.report / "report.json")["notes"]
    assert SENTENCE in (layout.report / "report.md").read_text()


@pytest.mark.parametrize("stage", ["localize", "select", "intervene"])
def test_edits_from_another_engine_are_refused(stage: str) -> None:
    with pytest.raises(
        ConfigError, match=r"must come from one engine, and only transformers runs edits; remove generation"
    ):
        RunConfig.build(None, [f"{stage}.generation=endpoint"])
