"""lm-evaluation-harness in the sweep: run here, and read from finished results as lm-eval writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.harness import HarnessTasks
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.sweep.cells import load_cell
from mechprobe.sweep.stage import sweep

N = 8
YAML = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: FILE}
test_split: train
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})


@pytest.fixture
def task(family: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task to whose first half base gives the right answers."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    prompts = [f"{i}+{i}=" for i in range(N)]
    said = generate(family["base"], family.tokenizer, prompts, max_new_tokens=3)
    answers = [one.text if place < N // 2 else "no" for place, one in enumerate(said)]
    lines = ({"question": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True))
    data = tmp_path / "sums_data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "sums.yaml"
    path.write_text(YAML.replace("FILE", str(data)))
    return path


def test_a_task_of_the_harness_has_its_numbers(family: ModelFamily, task: Path, tmp_path: Path) -> None:
    found = sweep(family, {"sums": {"harness": str(task)}}, out=tmp_path / "sweep")
    expected = HarnessTasks([task], HarnessConfig()).run(family["base"])
    cell = load_cell(tmp_path / "benchmarks", "sums", "base")
    assert [row[0] for row in cell.values.values()] == expected.values["sums"]["exact_match,none"]
    assert (cell.value.value, cell.value.n) == (0.5, N)
    assert 0.2 < cell.value.low < 0.5 < cell.value.high < 0.8
    assert cell.benchmark.metric == "exact_match,none"
    assert found.comparisons["sums"]["rl"].difference.n == N
    assert cell.cut is None  # lm-eval does not say how responses ended


def test_finished_results_are_read_as_lm_eval_writes_them(
    llama_family: dict[str, Path], family: ModelFamily, task: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for name in family.names:
        model: Any = HFLM(pretrained=family[name].hf, tokenizer=family.tokenizer)  # pyright: ignore[reportArgumentType]
        tracker, manager = (
            EvaluationTracker(output_path=str(tmp_path / "out" / name)),
            TaskManager(include_defaults=False),
        )
        options: Any = {
            "tasks": [str(task)],
            "task_manager": manager,
            "evaluation_tracker": tracker,
            "log_samples": True,
        }
        results: Any = simple_evaluate(model=model, **options)
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name="sums", samples=samples["sums"])
    places = {name: str(tmp_path / "out" / name) for name in family.names}
    found = sweep(None, {"math500": {"results": places}}, out=tmp_path / "read" / "sweep")
    run = sweep(family, {"math500": {"harness": str(task)}}, out=tmp_path / "run" / "sweep")
    for name in family.names:
        assert found.cells["math500"][name].value == run.cells["math500"][name].value
    assert found.comparisons["math500"]["rl"] == run.comparisons["math500"]["rl"]
    info = found.benchmarks["math500"]
    assert (info.title, info.source, info.decoding["num_fewshot"]) == ("MATH500", "finished results of lm-eval", 0)


def results_folder(folder: Path, values: list[Any], *, metric: str = "acc", **changes: Any) -> str:
    """A folder as lm-eval writes it, with one document for each value."""
    folder.mkdir(parents=True)
    mean = sum(values) / len(values)
    data: dict[str, Any] = {
        "results": {"quiz": {"alias": "quiz", f"{metric},none": mean, f"{metric}_stderr,none": 0.1}},
        "configs": {"quiz": {"output_type": "multiple_choice", "num_fewshot": changes.pop("num_fewshot", 0)}},
        "versions": {"quiz": 1},
        "higher_is_better": {"quiz": {metric: True}},
        "n-samples": {"quiz": {"original": len(values), "effective": len(values)}},
        "lm_eval_version": "0.4.9",
    } | changes
    (folder / "results_2026-01-01T00-00-00.1.json").write_text(json.dumps(data))
    rows = ({"doc_id": i, "doc_hash": f"h{i}", "filter": "none", metric: value} for i, value in enumerate(values))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples_quiz_2026-01-01T00-00-00.1.jsonl").write_text(text)
    return str(folder)


def test_finished_results_are_compared_on_their_documents(tmp_path: Path) -> None:
    places = {
        "base": results_folder(tmp_path / "a", [1.0, 0.0, 0.0, 1.0]),
        "rl@step_000010": results_folder(tmp_path / "b", [1.0, 1.0, 0.0, 1.0]),
        "rl": results_folder(tmp_path / "c", [1.0, 1.0, 1.0, 1.0]),
    }
    found = sweep(None, {"quiz": {"results": places}}, out=tmp_path / "sweep")
    assert found.arms == {"rl": ["rl@step_000010", "rl"]}
    assert [found.comparisons["quiz"][name].difference.value for name in ("rl@step_000010", "rl")] == [0.25, 0.5]
    again = sweep(
        None,
        {"quiz": {"results": {**places, "rl": results_folder(tmp_path / "d", [0.0, 0.0, 0.0, 1.0])}}},
        out=tmp_path / "sweep",
    )
    assert (
        again.comparisons["quiz"]["rl"].difference.value == -0.25
    )  # reading is cheap, so changed files need no --force


def test_results_without_samples_keep_the_standard_error_of_lm_eval(tmp_path: Path) -> None:
    place = results_folder(tmp_path / "a", [1.0, 0.0])
    next(Path(place).glob("samples_*")).unlink()
    cell = sweep(None, {"quiz": {"results": {"base": place}}}, out=tmp_path / "sweep").cells["quiz"]["base"]
    assert (cell.value.value, cell.value.n) == (0.5, 2)
    assert cell.value.high - cell.value.value == pytest.approx(0.196, abs=1e-3)


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    base, other = results_folder(tmp_path / "a", [1.0, 0.0]), results_folder(tmp_path / "b", [1.0, 0.0, 1.0])
    few = results_folder(tmp_path / "c", [1.0, 0.0], num_fewshot=5)
    chat = results_folder(tmp_path / "d", [1.0, 0.0], chat_template_sha="abc")

    def refused(rl: str, message: str, error: type[Exception] = InputError, **more: Any) -> None:
        with pytest.raises(error, match=message):
            sweep(None, {"quiz": {"results": {"base": base, "rl": rl}, **more}}, out=tmp_path / "sweep")

    refused(other, r"hold other documents \(3 and 2\)")
    refused(few, "different num_fewshot")
    refused(chat, "different chat_template_sha")
    refused(str(tmp_path / "nowhere"), "does not exist")
    refused(str(tmp_path), "holds several results")
    refused(base, "no metric 'f1'; it has acc,none", ConfigError, metric="f1")
    refused(base, "holds no results_.* with the task other", task="other")
    (tmp_path / "results_x.json").write_text("[]")
    refused(str(tmp_path / "results_x.json"), "has no 'results'")
    assert not (tmp_path / "sweep").exists()


HOSTILE: dict[str, dict[str, Any]] = {
    "a row that is a list": {"results": {"quiz": ["acc,none"]}},
    "a row that is null": {"results": {"quiz": None}},
    "configs that are a list": {"configs": [1]},
    "a config that is a list": {"configs": {"quiz": [1]}},
    "a config that is text": {"config": "x"},
    "versions that are a list": {"versions": [1]},
    "counts that are a list": {"n-samples": [1]},
    "a count that is text": {"n-samples": {"quiz": {"effective": "abc"}}},
    "a count that is null": {"n-samples": {"quiz": {"effective": None}}},
    "a negative count": {"n-samples": {"quiz": {"effective": -5}}},
    "directions that are a list": {"higher_is_better": {"quiz": [1]}},
    "a direction that is text": {"higher_is_better": {"quiz": {"acc": "perhaps"}}},
    "a value that is text": {"results": {"quiz": {"acc,none": "abc"}}},
    "a value that is not finite": {"results": {"quiz": {"acc,none": float("nan")}}},
    "a huge value": {"results": {"quiz": {"acc,none": 10**400}}},
    "an accuracy above 1": {"results": {"quiz": {"acc,none": 250.0}}},
    "an accuracy below 0": {"results": {"quiz": {"acc,none": -3.0}}},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_lm_eval_did_not_write_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    place = results_folder(tmp_path / "a", [1.0, 0.0], **changes)
    with pytest.raises(InputError, match=r"results_2026.*\.$"):
        sweep(None, {"quiz": {"results": {"base": place}}}, out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_file_of_deep_lists_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results_deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        sweep(None, {"quiz": {"results": {"base": str(tmp_path / "results_deep.json")}}}, out=tmp_path / "sweep")


def test_a_document_that_comes_twice_is_refused(tmp_path: Path) -> None:
    place = Path(results_folder(tmp_path / "a", [1.0, 0.0]))
    samples = next(place.glob("samples_*"))
    samples.write_text(samples.read_text() + samples.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"jsonl:3 has document 0 again under acc,none"):
        sweep(None, {"quiz": {"results": {"base": str(place)}}}, out=tmp_path / "sweep")


def test_documents_whose_mean_is_not_the_metric_give_no_paired_interval(tmp_path: Path) -> None:
    """The metric then is no mean over documents, so its difference is that of two independent samples."""
    metrics = {"results": {"quiz": {"acc,none": 0.9, "acc_stderr,none": 0.03}}}
    places = {name: results_folder(tmp_path / name, [1.0, 0.0, 0.0], **metrics) for name in ("base", "rl")}
    found = sweep(None, {"quiz": {"results": places}}, out=tmp_path / "sweep")
    difference = found.comparisons["quiz"]["rl"].difference
    assert (difference.value, difference.n) == (0.0, 3)
    assert difference.high == pytest.approx(1.96 * 2**0.5 * 0.03, abs=1e-4)
    assert load_cell(tmp_path / "benchmarks", "quiz", "rl").values == {}
