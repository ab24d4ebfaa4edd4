"""The sweep: rules, judges, reward models and stand-ins over a family; resumed cells; names that cannot be mistaken."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechprobe.cli import main
from mechprobe.errors import ArtifactError, ConfigError, InputError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.config import SamplingConfig
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills import generate
from mechprobe.evals.tasks import load_tasks
from mechprobe.files import dump_json
from mechprobe.models.family import ModelFamily
from mechprobe.records import read_outcomes
from mechprobe.sweep import benchmarks as benchmarks_module
from mechprobe.sweep.cells import load_cell, outcomes_of
from mechprobe.sweep.config import BenchmarkConfig, SweepConfig
from mechprobe.sweep.registry import SLOTS, STANDINS
from mechprobe.sweep.result import CellResult, SweepResults
from mechprobe.sweep.stage import read_benchmarks, sweep
from mechprobe.sweep.standin_scorers import boxed_form_kept, compact_form_kept
from mechprobe.sweep.table import arm_tables

NAMES = {"base": "base", "rl@step_000004": "sft", "rl": "rl"}
ENDS = "aeiouAEIOU02468.,;"
"""Characters that end about half of the responses of the random models."""
SMALL = {"skill": {"n": 4, "rendering": "compact"}, "max_new_tokens": 4}


@pytest.fixture
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: llama_family[path] for name, path in NAMES.items()})


def shorter(prompt: str, response: str) -> bool | None:
    """A toy judge: undecided where the response begins with a capital."""
    return None if response[:1].isupper() else len(response) + len(prompt) > 6


def settings(questions: Path, reward: Path) -> dict[str, Any]:
    sampled = {"n": 2, "temperature": 1.0}
    own = {"file": str(questions), "max_new_tokens": 5, "stop": list(ENDS)}
    return {
        "standin:math500": SMALL,
        "sums": {**own, "sampling": sampled, "scorer": "numeric"},
        "truthfulqa": {**own, "sampling": sampled},
        "alpaca_eval2": {**own, "sampling": sampled, "reward": {"model": str(reward)}},
    }


def test_every_model_on_every_benchmark(
    family: ModelFamily, questions: Path, toy_reward: Callable[..., Path], tmp_path: Path
) -> None:
    given = settings(questions, toy_reward())
    found = sweep(family, given, out=tmp_path / "sweep", judges={"truthfulqa": shorter})
    assert found.order == list(given)
    assert found.arms == {"rl": ["rl@step_000004", "rl"]}
    assert found.steps == {"base": 0, "rl@step_000004": 4, "rl": None}
    assert {name: set(cells) for name, cells in found.cells.items()} == {name: set(NAMES) for name in given}
    assert [found.benchmarks[name].metric for name in given] == ["avg@3", "avg@2", "share truthful", "reward mean"]

    cell = load_cell(tmp_path / "benchmarks", "sums", "rl")
    task = load_tasks(
        questions,
        scorer_spec="numeric",
        max_new_tokens=5,
        stop=list(ENDS),
        sampling=SamplingConfig(n=2, temperature=1.0),
    )
    outcomes = run_tasks(family["rl"], task)
    assert cell.values == {
        f"q{i}": [float(o.outcome == "right") for o in outcomes if o.sample_id == f"q{i}"] for i in range(6)
    }
    assert cell.cut == sum(o.cut for o in outcomes) / 12
    assert cell.tokens_mean == sum(o.n_response_tokens for o in outcomes) / 12
    assert cell.finish["length"] + cell.finish["stop"] == 12
    assert cell.sampled is not None
    assert set(cell.sampled.pass_at) == {1, 2}
    assert cell.benchmark.decoding["seed"] == 0

    judged = load_cell(tmp_path / "benchmarks", "truthfulqa", "rl")
    assert judged.undecided == sum(value is None for row in judged.values.values() for value in row) > 0
    assert judged.bounds is not None
    assert judged.bounds[0] <= judged.value.value <= judged.bounds[1]

    rewards = found.comparisons["alpaca_eval2"]["rl"]
    assert rewards.win_rate is not None
    assert 0 <= rewards.win_rate.value <= 1
    assert "base" not in found.comparisons["alpaca_eval2"]
    frame = found.to_pandas()
    assert len(frame) == 12
    assert set(frame.loc[frame.standin, "benchmark"]) == {"standin:math500"}
    outcomes = outcomes_of(found, tmp_path / "benchmarks")
    assert outcomes.tasks == ["standin:math500", "sums", "truthfulqa"]
    for name in ("sums", "truthfulqa"):
        shares = outcomes.right_draws("rl", name).mean(axis=1).tolist()
        rows = load_cell(tmp_path / "benchmarks", name, "rl").values.values()
        assert shares == [sum(value or 0.0 for value in row) / 2 for row in rows]
    tables, left_out = arm_tables(found)
    assert not left_out
    assert tables[0].columns == ["base", "step 4", "end", "end − base"]


def test_a_change_of_other_settings_leaves_the_items_of_a_standin(family: ModelFamily, tmp_path: Path) -> None:
    """`replace` would mark the skill, which nobody gave, as given."""
    config = SweepConfig.model_validate({"benchmarks": {"standin:math500": SMALL}}).replace(final_steps={"rl": 8})
    found = sweep(family, config=config, out=tmp_path / "sweep")
    assert found.steps["rl"] == 8
    assert found.benchmarks["standin:math500"].n_items == SMALL["skill"]["n"]


def test_names_of_standins_are_everywhere(family: ModelFamily, tmp_path: Path) -> None:
    found = sweep(family, {"standin:math500": SMALL}, out=tmp_path / "sweep")
    cell = tmp_path / "benchmarks" / "standin-math500" / "rl" / "result.json"
    for path in (
        cell,
        tmp_path / "sweep" / "sweep.json",
        tmp_path / "sweep" / "table.md",
        cell.with_name("manifest.json"),
    ):
        text = path.read_text()
        assert "standin:math500" in text
        assert "MATH500" not in text
        assert text.replace("standin:math500", "").count("math500") == 0 or path.name == "sweep.json"
    assert found.files["standin:math500"]["rl"] == "standin-math500/rl/result.json"
    assert "nothing about the benchmarks" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("math500", {}, "mechprobe does not hold the items of MATH500.*standin:math500"),
        ("math500", {"skill": {"skill": "calculation"}}, "would be taken for MATH500"),
        ("MATH-500", {"skill": {"skill": "calculation"}}, "would be taken for MATH500"),
        ("own", {"skill": {"skill": "calculation"}, "title": "Math 500"}, "would be taken for MATH500"),
        ("LiveCodeBench_v2", {"file": "skills"}, "holds items of the skills benchmark"),
        ("own", {"file": "questions", "title": "a\x1b[31m"}, "cannot be printed"),
        ("standin:math500", {"file": "x.jsonl"}, "file cannot be set"),
        ("standin:math500", {"skill": {"skill": "enumeration"}}, "drawn from calculation/mathematics"),
        ("standin:nothing", {}, "no stand-in 'standin:nothing'"),
        ("standin_math500", {"file": "x.jsonl"}, "would be taken for a stand-in"),
        ("a/b", {"file": "x.jsonl"}, "cannot be named"),
        ("ifeval", {"file": "questions"}, "IFEval is scored by strict and loose.*harness"),
        ("truthfulqa", {"file": "questions"}, "set judge"),
        ("alpaca_eval2", {"file": "questions"}, "set reward.model"),
        ("standin:alpaca_eval2", SMALL, "needs a reward model"),
        ("own", {"file": "questions", "harness": "x.yaml"}, "Benchmark own: .*one source"),
        ("own", {"file": "questions", "scorer": "exact", "reward": {"model": "m"}}, "one scorer"),
        ("own", {"fil": "questions"}, "Benchmark own: .*fil"),
        ("own", 3, "Benchmark own is 3; write a table"),
        ("own", {"results": {"base": "x", "../../rl": "y"}}, r"Benchmark own: A model cannot be named '../../rl'"),
        ("own", {"file": "questions", "inspect": {"": "y"}}, "A model cannot be named ''"),
    ],
)
def test_refused_benchmarks(
    family: ModelFamily, questions: Path, tmp_path: Path, name: str, config: Any, message: str
) -> None:
    if isinstance(config, dict):
        drawn = tmp_path / "skills.jsonl"
        drawn.write_text("".join(f"{json.dumps(item.to_json())}\n" for item in generate("calculation", n=4, seed=0)))
        files = {"questions": str(questions), "skills": str(drawn)}
        config = {key: files.get(value, value) if key == "file" else value for key, value in config.items()}
    with pytest.raises(ConfigError, match=message):
        sweep(family, {name: config}, out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    assert not (tmp_path / "benchmarks").exists()


def test_finished_cells_are_kept_when_benchmarks_and_models_are_added(
    family: ModelFamily, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def counted(model: Any, tasks: Any, **options: Any) -> Any:
        asked.append((tasks[0].name, model.name))
        return run_tasks(model, tasks, **options)

    monkeypatch.setattr(benchmarks_module, "run_tasks", counted)
    own = {"file": str(questions), "max_new_tokens": 3}
    first = sweep(family.subset("base", "rl"), {"a": own}, out=tmp_path / "sweep")
    assert asked == [("a", "base"), ("a", "rl")]
    asked.clear()
    again = sweep(family, {"a": own, "b": own}, out=tmp_path / "sweep")
    assert sorted(asked) == [("a", "rl@step_000004"), ("b", "base"), ("b", "rl"), ("b", "rl@step_000004")]
    assert again.cells["a"]["rl"].text == first.cells["a"]["rl"].text
    with pytest.raises(ArtifactError, match="other settings"):
        sweep(family, {"a": {**own, "max_new_tokens": 4}}, out=tmp_path / "sweep")
    asked.clear()
    sweep(family, {"a": {**own, "max_new_tokens": 4}}, out=tmp_path / "sweep", force=True)
    assert len(asked) == 3


def test_another_scorer_scores_the_kept_responses(
    family: ModelFamily,
    questions: Path,
    toy_reward: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"file": str(questions), "max_new_tokens": 5, "stop": list(ENDS)}
    sweep(family, {"a": own, "b": own}, out=tmp_path / "first" / "sweep", judges={"b": shorter})
    before = {path: path.read_bytes() for path in tmp_path.rglob("b/*/responses.jsonl")}

    def generating(model: Any, tasks: Any, **options: Any) -> Any:
        assert options.get("respond") is not None, "responses were generated again"
        return run_tasks(model, tasks, **options)

    monkeypatch.setattr(benchmarks_module, "run_tasks", generating)
    changed = {
        "a": {**own, "scorer": f"python:{__name__}:not_empty"},
        "b": {**own, "reward": {"model": str(toy_reward())}},
    }
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    found = sweep(family, changed, out=tmp_path / "first" / "sweep")
    outcomes = read_outcomes(tmp_path / "first" / "benchmarks" / "a" / "rl" / "responses.jsonl")
    assert [one.outcome for one in outcomes] == [
        "unparsed" if one.cut else "right" if one.response else "wrong" for one in outcomes
    ]
    assert found.cells["a"]["rl"].value.value == sum(one.outcome == "right" for one in outcomes) / 6
    assert found.benchmarks["b"].metric == "reward mean"
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(ArtifactError, match="other settings"):
        sweep(family, {"a": {**changed["a"], "stop": []}}, out=tmp_path / "first" / "sweep")


def not_empty(text: str, answer: str) -> bool:
    """A rule of a user."""
    del answer
    return bool(text)


def _killed(n: int, models: dict[str, str], given: dict[str, Any], out: Path) -> None:
    """Sweep until the n-th set of responses, then die without notice."""
    count = 0

    def dying(model: Any, tasks: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_tasks(model, tasks, **options)

    benchmarks_module.run_tasks = dying
    sweep(ModelFamily.load(models), given, out=out, judges={"truthfulqa": shorter})


def test_after_a_kill_no_finished_cell_is_made_again_and_results_are_equal_to_the_byte(
    llama_family: dict[str, Path],
    questions: Path,
    toy_reward: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, judges = settings(questions, toy_reward()), {"truthfulqa": shorter}
    models = {name: str(llama_family[path]) for name, path in NAMES.items()}
    sweep(ModelFamily.load(models), given, out=tmp_path / "whole" / "sweep", judges=judges)
    out = tmp_path / "killed" / "sweep"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(8, models, given, out))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("manifest.json")}
    assert len(finished) == 4  # two rule-scored benchmarks of two models
    asked: list[tuple[str, str]] = []

    def counted(model: Any, tasks: Any, **options: Any) -> Any:
        asked.append((tasks[0].name, model.name))
        return run_tasks(model, tasks, **options)

    monkeypatch.setattr(benchmarks_module, "run_tasks", counted)
    sweep(ModelFamily.load(models), given, out=out, judges=judges)
    assert len(asked) == 12 - 7  # responses that wait for their judge are kept, too
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes(), path


def test_responses_come_from_rollouts(family: ModelFamily, questions: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{i}",
            "model": model,
            "prompt": f"{i}+{i}=",
            "response": str(2 * i if model == "rl" else i),
            "finish_reason": "stop",
        }
        for i in range(6)
        for model in NAMES
    ]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"file": str(questions), "scorer": "numeric", "rollouts": [str(path)], "max_new_tokens": 8}
    found = sweep(family, {"sums": own}, out=tmp_path / "sweep")
    assert [found.cells["sums"][model].value.value for model in NAMES] == [1 / 6, 1 / 6, 1.0]  # 0 + 0 is 0
    assert found.comparisons["sums"]["rl"].difference.value == pytest.approx(5 / 6)
    assert found.cells["sums"]["rl"].engine is not None
    assert found.benchmarks["sums"].source == "rollouts"


def test_the_registry_has_the_papers_ten_benchmarks() -> None:
    assert [slot.title for slot in SLOTS.values()] == [
        "MATH500", "AIME24", "LiveCodeBench v2", "GPQA-Diamond", "MMLU-Pro", "IFEval", "AlpacaEval 2.0", "HaluEval",
        "TruthfulQA", "HEx-PHI",
    ]  # fmt: skip
    assert [slot.n for slot in SLOTS.values()][:5] == [3, 10, 3, 3, 1]
    assert [name for name, slot in SLOTS.items() if not slot.higher_is_better] == ["hex_phi"]
    assert {slot.kind for slot in SLOTS.values()} == {"rule", "judge", "reward_model"}
    assert all(name.startswith("standin:") for name in STANDINS)


def test_a_file_of_benchmarks_has_paths_relative_to_it(questions: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_text('[benchmarks.sums]\nfile = "questions.jsonl"\n[benchmarks."standin:aime24"]\n')
    found = read_benchmarks(path)
    assert found["sums"].file == str(questions)
    assert found["standin:aime24"] == BenchmarkConfig()
    path.write_text("[other]\nx = 1\n")
    with pytest.raises(ConfigError, match=r"must hold tables \[benchmarks"):
        read_benchmarks(path)


def test_the_last_yes_or_no_decides() -> None:
    rule = scorer("yes_no")
    assert rule.judge("No. On second thought: Yes.", "yes") == "right"
    assert rule.judge("no", "Yes") == "wrong"
    assert rule.judge("nothing", "yes") == "unparsed"
    assert rule.check("maybe") is not None


def test_kept_forms() -> None:
    assert compact_form_kept("THINK 1+2=3 ANS 3", "4")
    assert not compact_form_kept("ANS 3 ANS 4", "3")
    assert not compact_form_kept("THINK 3", "3")
    assert not compact_form_kept("ANS", "3")
    assert boxed_form_kept("so \\boxed{7}", "8")
    assert not boxed_form_kept("\\boxed{7} or \\boxed{8}", "8")


def test_commands(
    llama_family: dict[str, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "set.toml"
    toml.write_text('[benchmarks.sums]\nfile = "questions.jsonl"\nscorer = "numeric"\nmax_new_tokens = 3\n')
    pairs = [f"{name}={llama_family[path]}" for name, path in NAMES.items()]
    command = ["sweep", "--run", str(tmp_path / "run"), "--models", *pairs, "--benchmarks", str(toml)]
    assert main([*command, "--dry-run"]) == 0
    assert "3 cells (3 models × 1 benchmarks), 0 of them finished" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "sums (accuracy)" in text
    assert len(text.splitlines()) <= 40
    assert main(["sweep", "--run", str(tmp_path / "run"), "--json"]) == 0  # the run keeps its benchmarks
    found = json.loads(capsys.readouterr().out)
    assert found["cells"]["sums"]["rl"]["value"][3] == 6
    assert main([*command, "--benchmarks", "math500"]) == 2
    assert "mechprobe does not hold the items of MATH500" in capsys.readouterr().err


def test_a_missing_base_is_refused(family: ModelFamily, questions: Path, tmp_path: Path) -> None:
    own = {"file": str(questions), "max_new_tokens": 3}
    with pytest.raises(ConfigError, match=r"sweep.base is 'start'"):
        sweep(family, {"a": own}, out=tmp_path / "sweep", config=SweepConfig(base="start"))
    with pytest.raises(InputError, match="lower max_new_tokens of the benchmark"):
        sweep(family, {"a": {"file": str(questions), "max_new_tokens": 64}}, out=tmp_path / "sweep")
    with pytest.raises(ConfigError, match="no models are given"):
        sweep(None, {"a": {"file": str(questions)}}, out=tmp_path / "sweep")


def test_results_are_read_back(family: ModelFamily, questions: Path, tmp_path: Path) -> None:
    found = sweep(family, {"a": {"file": str(questions), "max_new_tokens": 3}}, out=tmp_path / "sweep")
    assert dump_json(SweepResults.load(tmp_path / "sweep").to_dict()) == dump_json(found.to_dict())
    assert CellResult.load(tmp_path / "benchmarks" / "a" / "rl" / "result.json").model == "rl"
