"""Judges: local models, functions, files of verdicts and servers; undecided verdicts move bounds and no mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from mechprobe.errors import ConfigError, EndpointError, InputError
from mechprobe.evals.config import EndpointConfig
from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import FunctionJudge, Judged, filled, read_verdict
from mechprobe.evals.judging.judges import judge_of
from mechprobe.evals.judging.model_judge import ModelJudge
from mechprobe.evals.judging.verdict_file import FileJudge
from mechprobe.evals.rollouts import client as client_module
from mechprobe.evals.rollouts.answers import Question
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.models.load import LanguageModel
from mechprobe.records import Outcome, Sample
from mechprobe.sweep.numbers import compare, judged_cell
from mechprobe.sweep.result import BenchmarkInfo


def judged(*texts: str) -> list[Judged]:
    return [
        Judged(Question("rl", "t", f"q{i}", 0, 0), Sample(f"q{i}", "t", f"p{i}", "-"), text)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", 1.0),
        (" **No**, because yes would be", 0.0),
        ("The answer is right: yes.", 1.0),
        ("Is it yes? I say no.", None),
        ("perhaps", None),
        ("", None),
        ("nothing to say; eyes", None),
    ],
)
def test_yes_and_no_are_read_where_only_one_is_meant(text: str, verdict: float | None) -> None:
    assert read_verdict(text, "yes_no", (1.0, 5.0)) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("#thescore: 5", 5.0),
        ("Score: 4/5", 4.0),
        ("3", 3.0),
        ("1 or 2", None),
        ("score 7", None),
        ("Rating = 2.5", 2.5),
        ("x", None),
    ],
)
def test_scores_are_read_on_the_scale(text: str, verdict: float | None) -> None:
    assert read_verdict(text, "score", (1.0, 5.0)) == verdict
    assert read_verdict(text, "score", (1.0, 5.0), cut=True) is None


def test_what_a_template_is_filled_with_is_not_filled_again() -> None:
    one = Judged(Question("m", "t", "q", 0, 0), Sample("q", "t", "{response} {x}", "a"), "{prompt}")
    assert filled("<{prompt}|{response}|{answer}>", one) == "<{response} {x}|{prompt}|a>"


def test_a_model_judges_by_its_logits(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = JudgeConfig(model=str(llama_family["rl"]), template="{prompt}>{response}?", yes="y", no="n", batch_size=2)
    found = judge_of(config).verdicts(judged("a", "bcd", "e", "fg"), tmp_path)
    model = LanguageModel("rl", llama_family["rl"])
    for one, verdict in zip(judged("a", "bcd", "e", "fg"), found, strict=True):
        ids = model.tokenizer(f"{one.sample.prompt}>{one.text}?").input_ids
        logits = model.hf(torch.tensor([ids])).logits[0, -1]
        yes, no = (logits[model.tokenizer("yn"[k], add_special_tokens=False).input_ids[0]] for k in (0, 1))
        assert verdict == float(yes > no)


def test_a_text_beyond_the_context_of_a_judge_is_refused(llama_family: dict[str, Path], tmp_path: Path) -> None:
    for by in ("logits", "word"):
        config = JudgeConfig(model=str(llama_family["rl"]), template="{response}", yes="y", no="n", by=by)
        with pytest.raises(InputError, match=r"sample q0 of task t.*has \d+ tokens in the judge's template.*64"):
            judge_of(config).verdicts(judged("x" * 80), tmp_path)


def test_a_model_whose_words_say_nothing_is_undecided(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = JudgeConfig(model=str(llama_family["rl"]), template="{response}", by="word", max_new_tokens=3)
    assert judge_of(config).verdicts(judged("a", "b"), tmp_path) == [None, None]


def test_functions_judge_prompt_and_response(tmp_path: Path) -> None:
    judge = FunctionJudge.of(lambda prompt, response: {"": None, "b": "no"}.get(response, prompt == "p0"))
    assert judge.verdicts(judged("a", "b", "", "d"), tmp_path) == [1.0, 0.0, None, 0.0]
    with pytest.raises(InputError, match="a verdict is yes or no"):
        FunctionJudge.of(lambda _p, _r: 0.5).verdicts(judged("a"), tmp_path)
    with pytest.raises(ConfigError, match="fix the function"):
        FunctionJudge.of(lambda _p, _r: 1 / 0).verdicts(judged("a"), tmp_path)


def verdict_file(path: Path, *lines: dict[str, Any]) -> JudgeConfig:
    path.write_text("".join(json.dumps({"model": "rl", **line}) + "\n" for line in lines))
    return JudgeConfig(verdicts=str(path))


def test_verdicts_come_from_a_file(tmp_path: Path) -> None:
    first, second = {"id": "q0", "verdict": "yes", "response": "a"}, {"id": "q1", "verdict": None}
    path = tmp_path / "verdicts.jsonl"
    config = verdict_file(path, first, second)
    assert judge_of(config).verdicts(judged("a", "b"), tmp_path) == [1.0, None]
    before = judge_of(config).identity_for("rl")
    verdict_file(path, first, second, {"id": "q0", "verdict": "no", "model": "sft"})
    assert judge_of(config).identity_for("rl") == before
    with pytest.raises(InputError, match=r"verdicts.jsonl:1 judges the response 'a'"):
        judge_of(config).verdicts(judged("other", "b"), tmp_path)
    with pytest.raises(InputError, match="no verdict on the response of model rl on sample q2"):
        judge_of(config).verdicts(judged("a", "b", "c"), tmp_path)
    with pytest.raises(InputError, match=r":2 is a second verdict"):
        judge_of(verdict_file(path, first, first))
    with pytest.raises(InputError, match=r":1: the verdict is 'maybe'"):
        judge_of(verdict_file(path, {"id": "q0", "verdict": "maybe"}))


def test_a_file_without_verdicts_and_a_response_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no verdict"):
        FileJudge(verdict_file(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match=r"five.jsonl:1.*'response'"):
        FileJudge(verdict_file(tmp_path / "five.jsonl", {"model": "rl", "id": "a", "verdict": 1, "response": 5}))


def leaves(prompt: str, response: str) -> bool:
    raise SystemExit(3)


ODD: list[Any] = [np.array([1, 2]), 10**400, 10**5000, float("nan"), "perhaps", [1]]


@pytest.mark.parametrize("place", range(len(ODD)))
def test_what_is_no_verdict_is_one_short_sentence(place: int, tmp_path: Path) -> None:
    judge = FunctionJudge.of(lambda prompt, response: ODD[place])
    with pytest.raises(InputError, match=r"returned .{1,80}; a verdict is yes or no, or null where it is undecided\.$"):
        judge.verdicts(judged("x"), tmp_path)


def test_a_judge_may_return_the_numbers_of_numpy_and_may_not_leave(tmp_path: Path) -> None:
    assert FunctionJudge.of(lambda prompt, response: np.bool_(True)).verdicts(judged("x"), tmp_path) == [1.0]
    with pytest.raises(ConfigError, match=r"failed on the response 'x' \(SystemExit: 3\)"):
        FunctionJudge.of(leaves).verdicts(judged("x"), tmp_path)
    with pytest.raises(ConfigError, match="Judge 'python:no_such_module:f'"):
        FunctionJudge(JudgeConfig(function="python:no_such_module:f"))


def test_two_words_of_the_same_tokens_are_refused_before_anything_runs(llama_family: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="have the same tokens"):
        ModelJudge(JudgeConfig(model=str(llama_family["base"]), yes=" yes", no=" yes"))


def server_config(httpserver: HTTPServer, **settings: Any) -> JudgeConfig:
    endpoint = EndpointConfig(base_url=httpserver.url_for("/v1"), max_retries=2, concurrency=2, api_key_env="TOY_KEY")
    return JudgeConfig(model="toy-judge", endpoint=endpoint, template="{response}", **settings)


def test_a_server_judges_and_is_asked_only_for_what_is_missing(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", "secret-key")
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    seen: list[str] = []
    broken = {"c"}

    def answer(request: Request) -> Response:
        assert request.headers["Authorization"] == "Bearer secret-key"
        text = request.get_json()["messages"][0]["content"]
        seen.append(text)
        if text in broken:
            return Response("down", status=503)
        said = {"a": "Yes.", "b": "No!"}.get(text, "unsure")
        return Response(json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}), status=200)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(answer)
    judge = judge_of(server_config(httpserver))
    with pytest.raises(EndpointError, match="the verdict on model rl on sample q2"):
        judge.verdicts(judged("a", "b", "c"), tmp_path)
    broken.clear()
    seen.clear()
    assert judge.verdicts(judged("a", "b", "c"), tmp_path) == [1.0, 0.0, None]
    assert seen == ["c"]
    assert all("secret-key" not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in json.dumps(judge.identity)


def test_a_judge_is_exactly_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="exactly one of"):
        JudgeConfig()
    with pytest.raises(ConfigError, match="exactly one of"):
        JudgeConfig(model="m", function="python:a:b")
    with pytest.raises(ConfigError, match=r"no \{response\}"):
        JudgeConfig(model="m", template="{prompt}")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = EndpointConfig(base_url="http://localhost:1/v1", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match=r"NO_SUCH_KEY is not set.*judge\.endpoint\.api_key_env"):
        judge_of(JudgeConfig(model="m", endpoint=endpoint))


def info(**more: Any) -> BenchmarkInfo:
    fixed = {"name": "x", "title": "x", "group": "own", "metric": "ASR", "scorer": "judge", "scoring": "toy"}
    fixed |= {
        "higher_is_better": False,
        "standin": False,
        "source": "hf",
        "decoding": {},
        "items": "",
        "n_items": 4,
        "n_draws": 1,
    }
    return BenchmarkInfo(**{**fixed, **more})


def outcomes(n: int, cut: tuple[int, ...] = ()) -> list[Outcome]:
    return [Outcome(f"q{i}", "x", "rl", "unparsed", "r", 3, finish="length" if i in cut else "stop") for i in range(n)]


def test_undecided_verdicts_move_the_bounds_and_not_the_mean() -> None:
    task = Task("x", tuple(Sample(f"q{i}", "x", "p", "-") for i in range(4)), scorer("exact"))
    config = JudgeConfig(function="python:json:dumps", reads="score")
    whole = judged_cell(info(), task, "rl", outcomes(4), [5.0, 1.0, 4.0, 5.0], config)
    assert (whole.value.value, whole.bounds, whole.undecided) == (0.5, None, 0)
    assert whole.metrics["mean score"].value == 3.75
    cell = judged_cell(info(), task, "rl", outcomes(4, cut=(3,)), [5.0, 1.0, None, None], config)
    assert (cell.value.value, cell.value.n, cell.undecided) == (0.5, 2, 2)
    assert cell.bounds == (0.25, 0.75)
    assert "2 undecided: 25 to 75" in cell.text
    assert "25 % cut" in cell.text
    difference = compare(whole, cell, seed=0)
    assert difference.bounds == (-0.25, 0.25)
    assert compare(whole, whole, seed=0).bounds is None
    lowered = config.replace(success=4.0)
    assert judged_cell(info(), task, "rl", outcomes(4), [5.0, 1.0, 4.0, 5.0], lowered).value.value == 0.75
    assert np.isnan(judged_cell(info(), task, "rl", outcomes(2), [None, None], config).value.value)
