"""Imported rollouts: scored as own responses, and checked line by line before any work."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mechprobe.data.config import TextConfig
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.choice import ChoiceItem, MultipleChoice
from mechprobe.evals.config import ChoiceConfig, EvaluateConfig, SamplingConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.rollouts.imported import read_rollouts
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import Task
from mechprobe.files import sha256_file
from mechprobe.models.family import ModelFamily
from mechprobe.records import Sample
from mechprobe.stage_folder import read_manifest

EOS = 2
MODELS = ("base", "rl")


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: llama_family[name] for name in MODELS})


def tasks(n: int = 4, **changes: Any) -> list[Task]:
    samples = tuple(Sample(f"q{i}", "t", f"p{i}", f"P{i}") for i in range(n))
    return [replace(Task("t", samples, scorer("exact"), 6), **changes)]


def rows(n: int = 4, draws: int = 1) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "model": model, "prompt": f"p{i}", "response": f"P{i}", "finish_reason": "stop", "sample": draw}
        for model in MODELS
        for i in range(n)
        for draw in range(draws)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def config(*paths: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(generation="import", imports=paths, **changes)


def test_imported_outcomes_are_those_of_own_responses(family: ModelFamily, tmp_path: Path) -> None:
    own = evaluate_outcomes(family, tasks(), tmp_path / "own", EvaluateConfig(force_prefix="Z"))
    lines = [
        {
            "id": r.sample_id, "model": r.model, "prompt": f"p{r.sample_id[1:]}", "response": r.response,
            "finish_reason": r.finish, "response_ids": [*r.response_ids, *([EOS] if r.finish == "stop" else [])],
        }
        for r in own.records
    ]  # fmt: skip
    header = {"engine": "vllm", "version": "0.11.2", "sampling": {"temperature": 0, "top_k": -1, "max_tokens": 6}}
    path = write(tmp_path / "rollouts.jsonl", [header, *reversed(lines)])
    found = evaluate_outcomes(family, tasks(), tmp_path / "imported", config(path, force_prefix="Z"))
    assert found.records == own.records
    engine = EvaluationSummary.load(tmp_path / "imported" / "summary.json").engine
    assert engine is not None
    assert (engine.generation, engine.name, engine.version) == ("import", "vllm", "0.11.2")
    assert (engine.n_tokenized, engine.said) == (0, [header])
    assert engine.files == {"rollouts.jsonl": sha256_file(path)}
    manifest = read_manifest(tmp_path / "imported")
    assert manifest["inputs"] == {"rollouts 0": sha256_file(path)}
    assert manifest["config"]["generation"] == "import"


def test_no_weights_are_loaded(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in MODELS})
    evaluate_outcomes(family, tasks(), tmp_path / "e", config(write(tmp_path / "r.jsonl", rows())))
    assert not any("hf" in vars(model) for model in family)


def test_one_file_per_model_and_text_alone(family: ModelFamily, tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{name}.jsonl", [row for row in rows() if row["model"] == name]) for name in reversed(MODELS)
    ]
    outcomes = evaluate_outcomes(family, tasks(), tmp_path / "e", config(*files))
    assert [record.model for record in outcomes.records] == ["base"] * 4 + ["rl"] * 4
    assert outcomes.record("rl", "t", "q3").response_ids == tuple(
        family.tokenizer("P3", add_special_tokens=False).input_ids
    )
    engine = EvaluationSummary.load(tmp_path / "e" / "summary.json").engine
    assert engine is not None
    assert engine.n_tokenized == 8


def test_a_cut_response_is_imported_as_cut_and_never_right(family: ModelFamily, tmp_path: Path) -> None:
    lines = rows()
    lines[0]["finish_reason"] = "length"
    outcomes = evaluate_outcomes(family, tasks(), tmp_path / "e", config(write(tmp_path / "r.jsonl", lines)))
    assert outcomes.record("base", "t", "q0").finish == "length"
    assert outcomes.record("base", "t", "q0").outcome != "right"
    assert outcomes.record("base", "t", "q1").outcome == "right"


def test_samples_beyond_n_per_task_may_be_there_or_not(family: ModelFamily, tmp_path: Path) -> None:
    for n in (2, 4):
        path = write(tmp_path / "r.jsonl", rows(n))
        found = evaluate_outcomes(family, tasks(), tmp_path / f"e{n}", config(path, n_per_task=2))
        assert len(found.records) == 4


def change(**fields: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def apply(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[2] = {key: value for key, value in (lines[2] | fields).items() if value is not ...}
        return lines

    return apply


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], str]] = {
    "unknown id": (change(id="q9"), r":3: no task has a sample 'q9'"),
    "other task": (change(task="u"), r":3: sample 'q2' is not in task 'u', but in t"),
    "other prompt": (change(prompt="p2 "), r":3: the prompt differs from the task's from character 2 on"),
    "other prompt ids": (change(prompt_ids=[1, 5]), r":3: the prompt ids of sample 'q2' are \[1, 5\] \(2\), but"),
    "no prompt": (change(prompt=...), r":3 has no field 'prompt'"),
    "other model": (change(model="sft"), r":3: 'sft' is none of the models base, rl"),
    "no model": (change(model=...), r":3 has no field 'model'"),
    "no reason": (change(finish_reason=...), r":3 has no finish_reason; add 'stop' where.*cannot be told from the text"),
    "null reason": (change(finish_reason=None), r":3 has no finish_reason; add"),
    "unknown reason": (change(finish_reason="abort"), r":3: the finish_reason 'abort' is none of stop"),
    "no response": (change(response=...), r":3 has no field 'response'"),
    "response of numbers": (change(response=5), r":3: 'response' is a int; it must be text"),
    "null response": (change(response=None), r":3: 'response' is a NoneType"),
    "half a character": (change(response="\ud83d"), r":3: 'response' has half a surrogate pair"),
    "ids of another text": (change(response_ids=[5, 6]), r":3: the response ids decode to"),
    "ids beyond the tokenizer": (change(response_ids=[9999]), r":3: 'response_ids' has the id 9999, but the tokenizer has"),
    "ids as text": (change(token_ids="5"), r":3: 'response_ids' is not a list of token ids"),
    "too long": (change(response="P234567"), r":3: the response has 7 tokens, but tasks.max_new_tokens allows 6"),
    "a second draw": (change(sample=1), r":3 is response 1 to its prompt, but tasks.sampling.n is 1"),
    "draw of text": (change(index="a", sample=...), r":3: the index of the sample is 'a'"),
    "twice": (lambda lines: [*lines, lines[0]], r":9 is a second response of model base on sample q0 .*r.jsonl:1;"),
    "one missing": (lambda lines: lines[:-1], r"lack the response of model rl on sample q3 of task t; add them"),
    "a model missing": (lambda lines: lines[:4], r"lack the response of model rl .* and 3 more; add the rollouts of rl"),
    "nothing": (lambda lines: [], r"holds no rollouts"),
    "two engines": (change(engine="sglang"), r"comes from sglang.*sample all models with one engine"),
    "other sampling": (
        lambda lines: [{"engine": "vllm", "sampling": {"temperature": 0.6}}, *lines],
        r":1: the responses were sampled with temperature 0.6, but tasks.sampling.temperature is 0",
    ),
    "other limit": (
        lambda lines: [{"engine": "vllm", "sampling": {"max_tokens": 32}}, *lines],
        r":1: .* max_tokens 32, but tasks.max_new_tokens is 6; set tasks.max_new_tokens = 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_one_sentence_and_leaves_nothing(name: str, family: ModelFamily, tmp_path: Path) -> None:
    spoil, message = FAULTS[name]
    path = write(tmp_path / "r.jsonl", spoil(rows()))
    with pytest.raises(InputError, match=message) as caught:
        evaluate_outcomes(family, tasks(), tmp_path / "e", config(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not (tmp_path / "e").exists()


def test_a_missing_file_is_one_sentence(family: ModelFamily, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.jsonl does not exist"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", config(str(tmp_path / "nowhere.jsonl")))


def test_the_prefix_baseline_is_named_where_it_is_missing(family: ModelFamily, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", rows())
    with pytest.raises(InputError, match=r'model base\+prefix .*set evaluate.force_prefix = ""'):
        evaluate_outcomes(family, tasks(), tmp_path / "e", config(path, force_prefix="Z"))
    path = write(tmp_path / "r.jsonl", [*rows(), {**rows()[0], "model": "base+prefix"}])
    with pytest.raises(InputError, match=r":9: the response does not begin with the forced prefix 'Z'"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", config(path, force_prefix="Z"))


def choice_task(*, generated: bool) -> Task:
    item = ChoiceItem("Which?", ("red", "blue"), 0)
    judge = MultipleChoice(ChoiceConfig(), {"c": item}, generated=generated)
    return Task("c", (judge.sample("c", "c"),), judge, 6)


def test_the_prompt_tells_the_order_of_the_options(family: ModelFamily, tmp_path: Path) -> None:
    task = choice_task(generated=True)
    judge = task.scorer
    assert isinstance(judge, MultipleChoice)
    prompts = [judge.prompt("c", order) for order in judge.orders("c")]
    lines = [
        {"id": "c", "model": model, "prompt": prompt, "response": letter, "finish_reason": "stop"}
        for model in MODELS
        for prompt, letter in zip(reversed(prompts), "BA", strict=True)
    ]
    found = evaluate_outcomes(family, [task], tmp_path / "e", config(write(tmp_path / "r.jsonl", lines)))
    assert [(r.outcome, r.chosen) for r in found.records] == [("right", (0, 0))] * 2
    with pytest.raises(InputError, match=r"sample c of task c in order 1 of the options"):
        evaluate_outcomes(family, [task], tmp_path / "f", config(write(tmp_path / "s.jsonl", lines[1:])))


@pytest.mark.parametrize("generation", ["import", "endpoint"])
def test_log_likelihoods_need_the_model(generation: str, family: ModelFamily, tmp_path: Path) -> None:
    changes = (
        {"imports": ("r.jsonl",)} if generation == "import" else {"endpoint": {"base_url": "http://127.0.0.1:9/v1"}}
    )
    with pytest.raises(ConfigError, match=rf"log-likelihoods of options, which evaluate.generation = '{generation}'"):
        evaluate_outcomes(
            family,
            [choice_task(generated=False)],
            tmp_path / "e",
            EvaluateConfig(generation=generation, **changes),  # type: ignore[arg-type]
        )


CHARACTERS = st.characters(codec="ascii", categories=["L", "N", "P"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(CHARACTERS, max_size=6), min_size=12, max_size=12),
    order=st.permutations(range(12)),
    with_ids=st.lists(st.booleans(), min_size=12, max_size=12),
    reasons=st.lists(st.sampled_from(["stop", "length"]), min_size=12, max_size=12),
    drop=st.integers(0, 11),
)
def test_any_complete_file_is_read_as_written_and_any_incomplete_one_is_refused(
    family: ModelFamily,
    tmp_path: Path,
    texts: list[str],
    order: list[int],
    with_ids: list[bool],
    reasons: list[str],
    drop: int,
) -> None:
    asked = tasks(2, sampling=SamplingConfig(n=3, temperature=1))
    lines = rows(2, draws=3)
    for line, text, ids, reason in zip(lines, texts, with_ids, reasons, strict=True):
        line |= {"response": text, "finish_reason": reason}
        if ids:
            line["token_ids"] = list(family.tokenizer(text, add_special_tokens=False).input_ids)
    shuffled = [lines[place] for place in order]
    answers = read_rollouts([write(tmp_path / "r.jsonl", shuffled)], family, asked, asked, dict.fromkeys(MODELS, ""))
    assert [(answer.text, answer.finish) for answer in answers.found.values()] == list(zip(texts, reasons, strict=True))
    assert answers.engine.n_tokenized == with_ids.count(False)
    gone = shuffled[:drop] + shuffled[drop + 1 :]
    missing = shuffled[drop]
    with pytest.raises(InputError, match=f"model {missing['model']} on sample {missing['id']} of task t"):
        read_rollouts([write(tmp_path / "r.jsonl", gone)], family, asked, asked, dict.fromkeys(MODELS, ""))
    with pytest.raises(InputError, match="is a second response"):
        read_rollouts(
            [write(tmp_path / "r.jsonl", [*shuffled, missing])], family, asked, asked, dict.fromkeys(MODELS, "")
        )


def test_the_lines_of_the_docs_convert_the_output_of_vllm(
    family: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "rollouts.md").read_text()
    script = page.partition("```python\n")[2].partition("```")[0]
    word = list(family.tokenizer("Ok", add_special_tokens=False).input_ids)

    class LLM:
        def __init__(self, path: str) -> None:
            assert path == "path/to/rl"

        def generate(self, prompts: list[str], params: dict[str, Any]) -> list[SimpleNamespace]:
            reasons = ["stop", "length", "stop", "stop"]
            outputs = [
                SimpleNamespace(index=i, text="Ok", finish_reason=reason, token_ids=(*word, EOS))
                for i, reason in enumerate(reasons)
            ]
            return [SimpleNamespace(prompt=prompt, outputs=outputs) for prompt in prompts]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict, __version__="0.11.2"))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tasks.jsonl", [{"id": f"q{i}", "prompt": f"p{i}"} for i in range(3)])
    exec(compile(script, "docs/rollouts.md", "exec"), {})
    asked = tasks(3, max_new_tokens=4096, sampling=SamplingConfig(n=4, temperature=0.6, top_p=0.95))
    answers = read_rollouts([tmp_path / "rl.jsonl"], family, asked, asked, {"rl": ""})
    assert [(answer.text, answer.finish) for answer in answers.found.values()][:2] == [("Ok", "stop"), ("Ok", "stop")]
    assert (answers.engine.name, answers.engine.version, answers.engine.n_tokenized) == ("vllm", "0.11.2", 0)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"


@pytest.fixture(scope="module")
def chat_family(tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    from tests.builders import build_family, build_tokenizer

    paths = build_family(tmp_path_factory.mktemp("chat"), names=MODELS, max_context=128)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for path in paths.values():
        tokenizer.save_pretrained(path)
    return ModelFamily.load(paths)


def test_prompts_of_the_text_rule_are_taken_plain_rendered_or_as_ids(chat_family: ModelFamily, tmp_path: Path) -> None:
    asked = tasks(4, text=TextConfig(chat_template=True))
    rendered = [f"<bos>[user]p{i}[me]" for i in range(4)]
    lines = rows()
    for line, text in zip(lines[:4], rendered, strict=True):
        line["prompt"] = text
    for line, text in zip(lines[4:], rendered, strict=True):
        del line["prompt"]
        line["prompt_token_ids"] = list(chat_family.tokenizer(text, add_special_tokens=False).input_ids)
    own = evaluate_outcomes(chat_family, asked, tmp_path / "e", config(write(tmp_path / "r.jsonl", lines)))
    plain = evaluate_outcomes(chat_family, asked, tmp_path / "f", config(write(tmp_path / "s.jsonl", rows())))
    assert own.records == plain.records
    assert [record.outcome for record in own.records] == ["right"] * 8
    lines[5]["prompt_token_ids"] = [1, *lines[5]["prompt_token_ids"]]
    with pytest.raises(InputError, match=r":6: the prompt ids .*check template, BOS"):
        evaluate_outcomes(chat_family, asked, tmp_path / "g", config(write(tmp_path / "r.jsonl", lines)))


def test_thinking_is_split_as_in_own_responses(family: ModelFamily, tmp_path: Path) -> None:
    lines = rows()
    lines[0]["response"] = "<think>P9</think>P0"
    lines[1]["response"] = "<think>P1"
    asked = tasks(max_new_tokens=40)
    found = evaluate_outcomes(family, asked, tmp_path / "e", config(write(tmp_path / "r.jsonl", lines)))
    first, second = (found.record("base", "t", sample) for sample in ("q0", "q1"))
    assert (first.outcome, first.finish, first.n_thinking_tokens > 0) == ("right", "stop", True)
    assert (second.outcome, second.finish) == ("unparsed", "unfinished")


def test_the_command_refuses_before_any_work_and_exits_with_2(
    llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mechprobe.cli import main

    def run(*options: str) -> tuple[int, str]:
        code = main(["evaluate", "--models", *models, "--tasks", asked, "--run", str(tmp_path / "run"), *options])
        return code, "".join(capsys.readouterr())

    models = [f"{name}={llama_family[name]}" for name in MODELS]
    asked = write(tmp_path / "t.jsonl", [{"id": f"q{i}", "prompt": f"p{i}", "answer": f"P{i}"} for i in range(4)])
    good, bad = write(tmp_path / "good.jsonl", rows()), write(tmp_path / "bad.jsonl", rows()[:-1])
    for options in (("--import", bad), ("--import", bad, "--dry-run"), ("--import", str(tmp_path / "none.jsonl"))):
        code, said = run("--set", "tasks.max_new_tokens=6", *options)
        assert code == 2
        assert len(said.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
    code, said = run("--set", "tasks.max_new_tokens=6", "--import", good)
    assert code == 0
    assert "Outcomes come from an engine that the file does not name (good.jsonl)" in said
