"""Scorers on hand-written responses, and defective task files."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.config import ChoiceConfig
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import load_tasks, split_halves


@pytest.mark.parametrize(
    ("spec", "response", "answer", "expected"),
    [
        ("exact", " 12 ", "12", "right"),
        ("exact", "twelve", "12", "wrong"),
        ("exact", "  ", "12", "unparsed"),
        ("numeric", "so it is 1,200.0.", "1200", "right"),
        ("numeric", "first 3 then 4", "3", "wrong"),
        ("numeric", "-7", "-7.0", "right"),
        ("numeric", "none", "3", "unparsed"),
        ("numeric", "x=.5", "0.5", "right"),
        ("numeric", ".5", "5", "wrong"),
        ("numeric", "it is -.25", "-1/4", "right"),
        ("numeric", "it is -.25.", "-0.25", "right"),
        ("numeric", "so it is...5", "5", "right"),
        ("numeric", "1e-3", "0.001", "right"),
        ("numeric", "1e-3", "-3", "wrong"),
        ("numeric", "1.5E+2 of them", "150", "right"),
        ("numeric", "2e5f", "5", "right"),
        ("numeric", "12345678901234567", "12345678901234568", "wrong"),
        ("numeric", "12345678901234567.0", "12,345,678,901,234,567", "right"),
        ("numeric", "0.1000", ".1", "right"),
        ("numeric", "-0", "0", "right"),
        ("numeric", "nan", "nan", "unparsed"),
        ("numeric", "1e99999999999999999999", "1", "unparsed"),
        ("final:ANS", "THINK 1 + 1 ANS 2", "2", "right"),
        ("final:ANS", "ANS 3 ANS 1 2", "12", "right"),
        ("final:ANS", "ANS", "12", "unparsed"),
        ("final:ANS", "12", "12", "unparsed"),
        ("final:####", "work #### 5", "5", "right"),
        ("letter", "B", "b", "right"),
        ("letter", "(c)", "C", "right"),
        ("letter", "**B**", "(B)", "right"),
        ("letter", "The answer is B because A is wrong.", "B", "right"),
        ("letter", "Answer: (d)", "D", "right"),
        ("letter", "the answer is A. No: the answer is C", "C", "right"),
        ("letter", r"the answer is A, so \boxed{\text{(C)}}", "C", "right"),
        ("letter", "B. Paris, which is a town", "B", "right"),
        ("letter", "D\nfor it is so", "D", "right"),
        ("letter", "not (A), rather (C) I think", "C", "right"),
        ("letter", "A dog, I think", "A", "unparsed"),
        ("letter", "The answer is a dog", "A", "unparsed"),
        ("letter", "The answer is Berlin", "B", "unparsed"),
        ("letter", "", "A", "unparsed"),
        ("letter", "Answer: I think it is B.", "B", "right"),
        ("letter", "The answer is I believe option C", "C", "right"),
        ("letter", "My answer: I would say (B)", "B", "right"),
        ("letter", "Answer: A dog is option (B)", "B", "right"),
        ("letter", "Answer: A *dog*", "A", "unparsed"),
        ("letter", "The answer is B, for the answer is I guess clear", "B", "right"),
        ("letter", "The answer is I.", "I", "right"),
        ("letter", "Answer: I\nthink of it", "I", "right"),
        ("letter", "The answer is I because of it", "I", "right"),
        ("letter", "The answer is A because B is wrong", "A", "right"),
        ("letter", "The answer is A as it was", "A", "right"),
        ("letter", "Answer: **A** of them", "A", "right"),
        ("letter", "the answer is option A of them", "A", "right"),
        ("letter", "Answer: A", "A", "right"),
        ("letter", "Answer: B dog", "B", "right"),
    ],
)
def test_scores_by_hand(spec: str, response: str, answer: str, expected: str) -> None:
    assert scorer(spec).score(response, answer) == expected


@given(st.integers(-(10**30), 10**30))
def test_numeric_accepts_any_whole_number(value: int) -> None:
    assert scorer("numeric").score(f"the answer is {value:,}", str(value)) == "right"


@pytest.mark.parametrize("spec", ["", "final:", "final: ", "regex:x", "EXACT"])
def test_unknown_scorers(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"exact.*numeric.*letter.*boxed.*final"):
        scorer(spec)


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tasks_keep_order_and_default_names(tmp_path: Path) -> None:
    rows = [{"task": t, "prompt": f"p{i}", "answer": "a"} for i, t in enumerate("baab")]
    tasks = load_tasks(write(tmp_path / "x.jsonl", rows))
    assert [(task.name, [s.prompt for s in task.samples]) for task in tasks] == [
        ("b", ["p0", "p3"]),
        ("a", ["p1", "p2"]),
    ]
    assert [task.name for task in load_tasks(tmp_path / "x.jsonl", names=["a"])] == ["a"]
    assert len(load_tasks(tmp_path / "x.jsonl", n_per_task=1)[0].samples) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "x.jsonl"),
        ([{"prompt": "p"}], r":1 .*'answer'"),
        ([{"prompt": "p", "answer": 3}], r":1: 'answer' is the number 3; it must be text"),
        ([{"prompt": "", "answer": "3"}], r":1: 'prompt'.*empty"),
        ([{"task": "pooled", "prompt": "p", "answer": "3"}], r":1: .*'pooled'"),
        ([{"id": "x", "prompt": "p", "answer": "3"}] * 2, r":2: id 'x'.* line 1"),
        ([{"prompt": "p", "options": "ab", "answer": 0}], r":1: 'options'.*list"),
        ([{"prompt": "p", "options": ["a", " "], "answer": 0}], r":1: 'options'.*list"),
        ([{"prompt": "p", "options": ["a"], "answer": 0}], r":1: 'options'.*two"),
        ([{"prompt": "p", "options": ["a", "a"], "answer": 0}], r":1: 'options'.*two"),
        (
            [{"prompt": "p", "options": list("abcdefghijk"), "answer": 0}],
            ":1 .*11 options.*10 letters.*tasks.choice.show",
        ),
        ([{"prompt": "p", "options": ["a", "b"], "answer": "C"}], ":1: .*'C'.*A to B.*0 to 1"),
        ([{"prompt": "p", "options": ["a", "b"], "answer": 2}], ":1: .*answer 2.*0 to 1"),
        ([{"prompt": "p", "options": ["a", "b"], "answer": True}], ":1: .*True"),
        ([{"prompt": "p", "options": ["a", "b"]}], ":1: .*None"),
        ([{"options": ["a", "b"], "answer": 0}], ":1 .*'prompt'"),
        (
            [{"prompt": "p", "options": ["a", "b"], "answer": 0}, {"prompt": "p", "answer": "3"}],
            r":2 .*options.* \S+:1;",
        ),
    ],
)
def test_task_file_defects(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_tasks(write(tmp_path / "x.jsonl", rows))


def test_unknown_task_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"task": "a", "prompt": "p", "answer": "3"}])
    with pytest.raises(ConfigError, match=r"'b'.*\ba\."):
        load_tasks(path, names=["b"])


@given(st.integers(1, 40), st.integers(0, 100))
def test_halves_are_disjoint_complete_and_seeded(n: int, seed: int) -> None:
    from mechprobe.evals.tasks import Task
    from mechprobe.records import Sample

    task = Task("t", tuple(Sample(str(i), "t", f"p{i}", "a") for i in range(n)), scorer("exact"))
    first, second = split_halves(task, seed=seed)
    assert not {s.id for s in first.samples} & {s.id for s in second.samples}
    assert len(first.samples) + len(second.samples) == n
    assert abs(len(first.samples) - len(second.samples)) <= 1
    assert split_halves(task, seed=seed) == (first, second)
    order = np.random.default_rng([seed, *b"t"]).permutation(
        n
    )  # without repeated prompts, samples are drawn one by one
    assert [int(s.id) for s in first.samples] == sorted(order[: n // 2].tolist())


@given(
    texts=st.lists(st.sampled_from(["a b", "a  b\n", "c", "d", "é", "e\u0301", "f", "g"]), max_size=40),
    seed=st.integers(0, 9),
)
def test_the_same_prompt_under_several_ids_is_in_one_half(texts: list[str], seed: int) -> None:
    from mechprobe.evals.tasks import Task
    from mechprobe.records import Sample

    def said(task: Task) -> set[str]:
        return {unicodedata.normalize("NFC", " ".join(sample.prompt.split())) for sample in task.samples}

    whole = Task("t", tuple(Sample(str(i), "t", text, "a") for i, text in enumerate(texts)), scorer("exact"))
    first, second = split_halves(whole, seed=seed)
    assert not said(first) & said(second)
    assert {s.id for s in first.samples} | {s.id for s in second.samples} == {s.id for s in whole.samples}
    assert len(first.samples) <= len(texts) // 2
    sizes = [sum(said(Task("u", (s,), whole.scorer)) == {key} for s in second.samples) for key in said(second)]
    assert not sizes or len(first.samples) + min(sizes) > len(texts) // 2  # no further prompt fits the first half
    sides: dict[str, bool] = {}
    tasks = [Task(name, whole.samples[start:], whole.scorer) for name, start in (("t", 0), ("u", 3), ("v", 5))]
    halves = [split_halves(task, seed=seed, sides=sides) for task in tasks]
    assert not set().union(*(said(one) for one, _ in halves)) & set().union(*(said(other) for _, other in halves))


def test_a_question_with_its_options_in_another_order_is_the_same() -> None:
    from mechprobe.evals.choice import ChoiceItem, MultipleChoice
    from mechprobe.evals.config import ChoiceConfig
    from mechprobe.evals.tasks import Task

    options = [("x", "y", "z"), ("z", "x", "y"), ("y", "z", "x"), ("x", "y", "w")]
    items = {str(index): ChoiceItem("Which?", own, 0) for index, own in enumerate(options)}
    judge = MultipleChoice(ChoiceConfig(), items)
    task = Task("t", tuple(judge.sample(key, "t") for key in items), judge)
    keys = [task.content_key(sample) for sample in task.samples]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_a_scorer_for_each_task(tmp_path: Path) -> None:
    rows = [{"task": task, "prompt": "p", "answer": "3"} for task in ("a", "b")]
    path = write(tmp_path / "x.jsonl", rows)
    specs = {task.name: task.scorer.spec for task in load_tasks(path, scorers={"b": "numeric"})}
    assert specs == {"a": "exact", "b": "numeric"}
    with pytest.raises(ConfigError, match=r"'c'.*a, b"):
        load_tasks(path, scorers={"c": "numeric"})
    with pytest.raises(InputError, match=r":2: .*'3'.*A to J.*'letter'"):
        load_tasks(path, scorers={"b": "letter"})


def test_a_file_cannot_name_code(tmp_path: Path) -> None:
    """Otherwise a data file could decide which code runs."""
    rows = [{"prompt": "p", "answer": "3", "scorer": "python:os:system"}]
    with pytest.raises(InputError, match=r":1: .*--scorer"):
        load_tasks(write(tmp_path / "x.jsonl", rows))


def test_tasks_with_options(tmp_path: Path) -> None:
    rows = [
        {"id": "q1", "prompt": "Which?", "options": ["red", "blue"], "answer": "b"},
        {"id": "q2", "prompt": "What?", "options": ["one", "two", "six"], "answer": 0},
    ]
    path = write(tmp_path / "quiz.jsonl", rows)
    (task,) = load_tasks(path)
    assert task.by_likelihood
    assert task.samples[0].prompt == "Which?\nA. red\nB. blue\nAnswer:"
    assert [sample.answer for sample in task.samples] == [" B", " A"]
    (words,) = load_tasks(path, scorer_spec="letter")
    assert not words.by_likelihood
    assert [sample.answer for sample in words.samples] == ["B", "A"]
    (bare,) = load_tasks(path, choice=ChoiceConfig(show="none"))
    assert (bare.samples[0].prompt, bare.samples[0].answer) == ("Which?", " blue")
    with pytest.raises(ConfigError, match=r"'quiz'.*'numeric'.*'letter'"):
        load_tasks(path, scorers={"quiz": "numeric"})
    with pytest.raises(ConfigError, match=r"'quiz'.*'letter'.*tasks\.choice\.show"):
        load_tasks(path, scorer_spec="letter", choice=ChoiceConfig(show="none"))
