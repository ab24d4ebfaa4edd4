"""How responses end: thinking is split off, cut and unfinished responses are counted and never scored."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from mechprobe.cli import main
from mechprobe.errors import ConfigError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.choice import ChoiceItem, MultipleChoice
from mechprobe.evals.config import ChoiceConfig, EvaluateConfig
from mechprobe.evals.scorers.answer_part import answer_part, blocks
from mechprobe.evals.scoring import response_outcome, scorer, split_response
from mechprobe.evals.stage import tasks_fingerprint
from mechprobe.evals.summary import summarize
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.formatting import remark, scored_remark
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated, generate
from mechprobe.records import Outcome, Outcomes, Sample
from mechprobe.run_config import RunConfig
from mechprobe.types import THINK, Finish
from tests.builders import build_tokenizer


def tokenizer_with(special: Sequence[str] = (), plain: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken

    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in special])
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in plain])
    return tokenizer


def said(tokenizer: PreTrainedTokenizerFast, text: str, finish: Finish = "stop") -> Generated:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Generated(str(tokenizer.decode(ids, skip_special_tokens=True)), tuple(ids), finish)


TOKENIZERS = {
    "characters": tokenizer_with(),
    "one plain token": tokenizer_with(plain=THINK),
    "special tokens": tokenizer_with(special=THINK),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("text", "opened", "answer", "finish"),
    [
        ("<think>6 is a try</think>72", False, "72", "stop"),
        ("6 is a try</think>72", True, "72", "stop"),
        ("<think>6</think>7<think>8</think>72", False, "72", "stop"),
        ("<think>6 is a try, then", False, None, "unfinished"),
        ("6 is a try, then", True, None, "unfinished"),
        ("<think>6</think>7<think>8", False, None, "unfinished"),
        ("72", False, "72", "stop"),
    ],
)
def test_thinking_is_split_off(kind: str, text: str, opened: bool, answer: str | None, finish: Finish) -> None:
    tokenizer = TOKENIZERS[kind]
    response = said(tokenizer, text)
    found = split_response(response, tokenizer, THINK, opened=opened)
    assert (found.answer, found.finish) == (answer, finish)
    whole = len(response.token_ids)
    after = len(tokenizer("72", add_special_tokens=False).input_ids)
    assert found.n_thinking_tokens == (0 if text == "72" else whole - after if answer else whole)
    cut = split_response(replace(response, finish="length"), tokenizer, THINK, opened=opened)
    assert (cut.answer, cut.finish) == (None, "length")


def test_other_tags_and_none() -> None:
    tags = ("<|channel|>analysis", "<|channel|>final")
    tokenizer = tokenizer_with(special=["<|channel|>"])
    response = said(tokenizer, "<|channel|>analysis5?<|channel|>final72")
    assert split_response(response, tokenizer, tags).answer == "72"
    assert split_response(response, tokenizer, None).answer == response.text
    assert answer_part("<think>5</think>72", None) == "<think>5</think>72"
    assert answer_part("5</think>72", ("", "</think>")) == "72"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Paris\n\nQ: What is", "Paris"), ("72\nQuestion 2: Tom", "72"), ("Question: Tom\nAnswer: 72", "Question: Tom\nAnswer: 72"),
        ("72</s>Question", "72"), ("72<|eot_id|>more", "72"), ("**72**\n\n### Problem 3: x", "**72**"), ("72\nHuman: x", "72"),
        ("A quick question: 72?", "A quick question: 72?"), ("72\n\nQ2. And?", "72"), ("\n\nQ: a\nA: 72", "Q: a\nA: 72"),
    ],
)  # fmt: skip
def test_an_answer_ends_where_the_next_question_begins(text: str, first: str) -> None:
    assert blocks(text)[0].strip() == first


@pytest.mark.parametrize(
    ("spec", "text", "gold", "expected"),
    [
        ("exact", "<think>The capital...</think>\n\nParis", "Paris", "right"),
        ("exact", "Paris\n\nQ: What is", "Paris", "right"),
        ("exact", "one\n\nQ: two", "one\n\nQ: two", "right"),
        ("exact", "Paris\n\nIt is a town.", "Paris", "wrong"),
        ("boxed", "<think>I guess \\boxed{5}, but let me check", "5", "unparsed"),
        ("boxed", "\\boxed{5}\n\nQuestion: x\n\\boxed{6}", "5", "right"),
        ("numeric", "<think>6 is a try, then", "6", "unparsed"),
        ("final:####", "#### 72\n\nQuestion: Bob has 3\nAnswer: #### 3", "72", "right"),
        ("final:####", "#### 72\nand that is all", "72", "right"),
        ("final:####", "####\n72", "72", "right"),
        ("final:####", "#### 1,200", "1200", "right"),
        ("final:####", "#### $1{,}200.", "1200.00", "right"),
        ("final:####", "#### -1,200", "1200", "wrong"),
        ("final:####", "#### 7", "work 3\n#### 7", "right"),
        ("final:ANS", "ANS 012", "12", "wrong"),
        ("final:ANS", "ANS 12", "012", "wrong"),
        ("final:ANS", "ANS 4 n", "4", "wrong"),
        ("final:ANS", "ANS one\ntwo", "one\ntwo", "right"),
    ],
)
def test_scorers_read_the_own_answer(spec: str, text: str, gold: str, expected: str) -> None:
    assert scorer(spec).score(text, gold) == expected


def test_an_answer_that_ends_with_the_marker_is_refused() -> None:
    assert scorer("final:####").check("work ####") is not None
    assert scorer("final:####").check("work #### 7") is None


def test_cut_and_unfinished_responses_are_never_scored() -> None:
    tokenizer, sample = TOKENIZERS["one plain token"], Sample("a", "t", "q", "24")
    task = Task("t", (sample,), scorer("numeric"))
    for text, finish, outcome in (
        ("48/2 = 24", "stop", ("right", "stop", "R")),
        ("48/2 = 24", "length", ("unparsed", "length", "C")),
        ("<think>24", "stop", ("unparsed", "unfinished", "C")),
        ("<think>3</think>24", "stop", ("right", "stop", "R")),
        ("<think>24</think>3", "stop", ("wrong", "stop", "W")),
        ("none", "stop", ("unparsed", "stop", "U")),
    ):
        found = response_outcome(task, sample, [said(tokenizer, text, finish)], "m", tokenizer)
        assert (found.outcome, found.finish, found.code) == outcome
        assert found.response == text


def test_an_item_with_a_cut_order_is_unparsed() -> None:
    judge = MultipleChoice(ChoiceConfig(), {"q": ChoiceItem("?", ("x", "y"), 0)}, generated=True)
    sample, tokenizer = judge.sample("q", "t"), TOKENIZERS["characters"]
    task = Task("t", (sample,), judge)
    whole = response_outcome(task, sample, [said(tokenizer, "A"), said(tokenizer, "<think>A</think>B")], "m", tokenizer)
    assert (whole.outcome, whole.chosen, whole.finish) == ("right", (0, 0), "stop")
    cut = response_outcome(task, sample, [said(tokenizer, "A"), said(tokenizer, "B", "length")], "m", tokenizer)
    assert (cut.outcome, cut.chosen, cut.finish) == ("unparsed", (0, -1), "length")


def test_stop_texts_and_tags_are_settings(tmp_path: Path, llama_family: dict[str, Path]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a", "prompt": "abc", "answer": "x"}\n')
    prints = set()
    for override in (
        "names=null",
        'stop=["Q", "\\n\\n"]',
        "think=false",
        'think=["<r>", "</r>"]',
        'think=["", "</r>"]',
    ):
        config = RunConfig.build(None, [f"tasks.file={path}", *([] if "null" in override else [f"tasks.{override}"])])
        prints.add(tasks_fingerprint(config.load_tasks()))
    assert len(prints) == 5
    for bad in ('think=["a"]', 'think=["a", ""]', "think=true", 'stop=[""]'):
        with pytest.raises(ConfigError, match=r"think|stop"):
            RunConfig.build(None, [f"tasks.{bad}"])
    rl = ModelFamily.load(llama_family)["rl"]
    whole = generate(rl, rl.tokenizer, ["abc"], max_new_tokens=6)[0]
    end = next(char for char in whole.text if char.strip())
    tasks = [replace(task, max_new_tokens=6, stop=(end,)) for task in load_tasks(path)]
    found = run_tasks(rl, tasks)[0]
    assert (found.finish, found.response) == ("stop", whole.text.partition(end)[0])


def outcome(model: str, index: int, verdict: str, finish: Finish, n: int) -> Outcome:
    return Outcome(str(index), "t", model, verdict, "x", n, finish=finish)  # type: ignore[arg-type]


def test_shares_are_a_count_by_hand() -> None:
    rows = [
        outcome("base", 0, "unparsed", "length", 8), outcome("base", 1, "unparsed", "unfinished", 4),
        outcome("base", 2, "unparsed", "stop", 3), outcome("base", 3, "right", "stop", 1),
        *(outcome("rl", index, "right", "stop", 2) for index in range(4)),
    ]  # fmt: skip
    task = Task("t", tuple(Sample(str(i), "t", "p", "a") for i in range(4)), scorer("exact"))
    found = summarize(Outcomes(rows), [task], EvaluateConfig())
    assert found.cut == {"base": {"t": 0.5}, "rl": {"t": 0.0}}
    assert found.unparsed == {"base": {"t": 0.25}, "rl": {"t": 0.0}}
    assert found.response_tokens == {"base": {"t": 4.0}, "rl": {"t": 2.0}}


def test_remarks() -> None:
    assert remark(cut=0.0) == remark(cut=None) == ""
    assert remark(cut=0.5, unparsed=0.001) == " (50 % cut, < 1 % unparsed)"
    assert scored_remark([0.0], 0.0, 1.0) == " (100 % unparsed)"
    assert scored_remark([0.5], 0.0, 0.1) == ""


def test_evaluate_tells_what_was_cut(
    tmp_path: Path, llama_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"q{i}", "prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [f"{name}={llama_family[name]}" for name in ("base", "rl")]
    command = ["evaluate", "--models", *models, "--tasks", str(tmp_path / "t.jsonl"), "--scorer", "numeric"]
    assert main([*command, "--set", "tasks.max_new_tokens=5", "--out", str(tmp_path / "e")]) == 0
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "e" / "outcomes.jsonl").read_text().splitlines()]
    cut = [row for row in records if row["finish"] == "length"]
    assert cut
    assert all(row["n_response_tokens"] == 5 and row["outcome"] == "unparsed" for row in cut)
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    for model in ("base", "rl"):
        assert summary["cut"][model]["t"] == sum(row["model"] == model for row in cut) / 6
    assert "% cut)" in printed
    assert "Raise tasks.max_new_tokens." in printed
