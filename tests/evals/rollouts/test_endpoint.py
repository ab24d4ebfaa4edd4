"""The endpoint against a local server that misbehaves as asked: faults, refusals, keys, and what other servers say."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from mechprobe.data.config import TextConfig
from mechprobe.errors import ArtifactError, ConfigError, EndpointError, InputError
from mechprobe.evals.config import EndpointConfig, EvaluateConfig, SamplingConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.rollouts import client as client_module
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import JOURNAL_FILE, evaluate_outcomes
from mechprobe.evals.tasks import Task
from mechprobe.models.family import ModelFamily
from mechprobe.records import Sample

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_WAIT", 0.05)


def tasks(n: int = 20, **settings: Any) -> list[Task]:
    samples = tuple(Sample(f"q{i}", "t", f"p{i}", f"P{i}") for i in range(n))
    return [replace(Task("t", samples, scorer("exact"), 6), **settings)]


def completion(text: str, reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason, **more}]}


@dataclass
class Fake:
    """A server that answers a prompt in capital letters, unless ``fault`` gives another response."""

    http: HTTPServer
    fault: Callable[[int, dict[str, Any]], Response | None] = lambda number, body: None
    owner: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.http.expect_request("/v1/models").respond_with_handler(
            lambda _: Response(
                json.dumps({"data": [{"id": "x", "owned_by": self.owner}]}), content_type="application/json"
            )
        )
        self.http.expect_request("/version").respond_with_json({"version": "9.8.7"})
        self.http.expect_request("/v1/completions", method="POST").respond_with_handler(self.complete)

    @property
    def url(self) -> str:
        return self.http.url_for("/v1")

    def complete(self, request: Request) -> Response:
        body = json.loads(request.get_data())
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            number = len(self.bodies)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.fault(number, body) or self._answer(body)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, body: dict[str, Any]) -> Response:
        with self._lock:
            self.answered[body["model"], str(body["prompt"])] += 1
        text = body["prompt"] if isinstance(body["prompt"], str) else "ids"
        return Response(json.dumps(completion(text.upper())), content_type="application/json")

    def config(self, **settings: Any) -> EvaluateConfig:
        own = {"base_url": self.url, "prompt_as": "text", **settings}
        return EvaluateConfig(generation="endpoint", endpoint=EndpointConfig(**own))


@pytest.fixture
def fake() -> Iterator[Fake]:
    with server() as http:
        yield Fake(http)


@contextmanager
def server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as http:
        yield http


def test_a_fifth_of_the_requests_fail_and_nothing_is_lost_or_doubled(
    family: ModelFamily, fake: Fake, tmp_path: Path
) -> None:
    chance = random.Random(0)
    faults: Counter[str] = Counter()

    def fault(number: int, body: dict[str, Any]) -> Response | None:
        if chance.random() >= 0.2:
            return None
        kind = chance.choice(
            ["timeout", "429", "500", "503", "half", "no json", "no choices", "no reason", "surrogate"]
        )
        faults[kind] += 1
        whole = json.dumps(completion(body["prompt"].upper()))
        if kind == "timeout":
            time.sleep(0.6)
            return Response(whole)
        if kind.isdigit():
            return Response("busy", status=int(kind), headers={"Retry-After": "0"} if kind == "429" else {})
        text = {
            "half": whole[: len(whole) // 2],
            "no json": "<html>",
            "no choices": json.dumps({"choices": []}),
            "no reason": json.dumps(completion("X", None)),
            "surrogate": json.dumps(completion("\ud83d")),
        }[kind]
        return Response(text, content_type="application/json")

    fake.fault = fault
    outcomes = evaluate_outcomes(family, tasks(60), tmp_path / "e", fake.config(timeout=0.3, concurrency=4))
    assert set(faults) >= {"timeout", "429", "500", "half", "no json"}
    assert [(r.model, r.sample_id, r.response, r.outcome) for r in outcomes.records] == [
        (model, f"q{i}", f"P{i}", "right") for model in ("base", "rl") for i in range(60)
    ]
    assert set(fake.answered.values()) == {1}
    assert len(fake.bodies) == 120 + sum(faults.values())
    assert fake.most_at_once <= 4 + faults["timeout"]  # a request that timed out still runs on the server
    assert not (tmp_path / "e" / JOURNAL_FILE).exists()


def test_concurrency_is_bounded(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    fake.fault = lambda number, body: time.sleep(0.02)
    evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(concurrency=3))
    assert fake.most_at_once == 3


def test_resumed_after_an_interruption_asks_only_what_is_missing(
    family: ModelFamily, fake: Fake, tmp_path: Path
) -> None:
    fake.fault = lambda number, body: Response("gone", status=400) if number == 15 else None
    with pytest.raises(EndpointError, match=r"400: gone"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(concurrency=1))
    journal = tmp_path / "e" / JOURNAL_FILE
    with journal.open("ab") as file:  # what a killed process leaves
        file.write(b'{"question": ["rl", "t", "q1')
    fake.fault = lambda number, body: None
    outcomes = evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(concurrency=1))
    assert len(outcomes.records) == 40
    assert len(fake.bodies) == 41
    assert set(fake.answered.values()) == {1}


def test_answers_of_another_server_are_not_mixed(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    fake.fault = lambda number, body: Response("gone", status=400) if number == 5 else None
    with pytest.raises(EndpointError):
        evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(concurrency=1))
    fake.owner = "vllm"
    with pytest.raises(ArtifactError, match=r"answers of another server.*'vllm' now.*--force"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(concurrency=1))


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_one_request_and_one_sentence(
    status: int, family: ModelFamily, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    fake.fault = lambda number, body: Response("wrong key secret-123", status=status)
    with pytest.raises(EndpointError, match=rf"refuses the request \({status}\); check the key in MY_KEY\.$") as caught:
        evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config(api_key_env="MY_KEY"))
    assert len(fake.bodies) == 1
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_but_never_stored(
    family: ModelFamily, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    evaluate_outcomes(family, tasks(3), tmp_path / "e", fake.config(api_key_env="MY_KEY"))
    assert {headers["Authorization"] for headers in fake.headers} == {"Bearer secret-123"}
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "e").iterdir())
    fake.fault = lambda number, body: Response("you said secret-123", status=400)
    with pytest.raises(EndpointError, match=r"you said \*\*\*"):
        evaluate_outcomes(family, tasks(3), tmp_path / "f", fake.config(api_key_env="MY_KEY"))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        evaluate_outcomes(family, tasks(3), tmp_path / "g", fake.config(api_key_env="MY_KEY"))
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(ConfigError, match="MY_KEY has characters"):
        evaluate_outcomes(family, tasks(3), tmp_path / "g", fake.config(api_key_env="MY_KEY"))


def test_neither_redirects_nor_proxies_receive_the_key(
    family: ModelFamily, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    with server() as other:
        target = other.url_for("/v1/completions")
        fake.fault = lambda number, body: Response("", status=307, headers={"Location": target})
        with pytest.raises(EndpointError, match="redirects to"):
            evaluate_outcomes(family, tasks(3), tmp_path / "e", fake.config(api_key_env="MY_KEY"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url_for("/"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        fake.fault = lambda number, body: None
        evaluate_outcomes(family, tasks(3), tmp_path / "f", fake.config(api_key_env="MY_KEY"))
        assert not other.log


@pytest.mark.parametrize(
    ("key", "url"), [("sk-secret", "http://h/v1"), ("", "http://u:sk-secret@h/v1"), ("", "http://h/v1?key=sk-secret")]
)
def test_settings_with_a_key_are_refused_without_showing_it(key: str, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig(generation="endpoint", endpoint={"base_url": url, "api_key_env": key})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_waits_grow_honour_the_server_and_come_from_a_seed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, family: ModelFamily, tmp_path: Path
) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(client_module, "LONGEST_WAIT", 60.0)
    waits: list[list[float]] = []

    async def sleep(seconds: float) -> None:
        waits[-1].append(seconds)

    monkeypatch.setattr(client_module, "sleep", sleep)
    for after in (None, "7", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"):
        waits.append([])
        fake.fault = lambda number, body, after=after: Response("", 429, {"Retry-After": after} if after else {})
        with pytest.raises(EndpointError, match=r"failed 5 times to answer model base on sample q0 of task t \(429\)"):
            evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config(max_retries=4))
    plain, seven, past, unreadable = waits
    assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(plain))
    assert seven == [max(7.0, wait) for wait in plain]
    assert past == unreadable == plain
    fake.fault = lambda number, body: Response("", 429, {"Retry-After": "99999999"})
    with pytest.raises(EndpointError, match="asks to wait 99999999 seconds"):
        evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config())


def test_vllm_gets_ids_and_everything_that_decides_the_tokens(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    fake.owner = "vllm"
    word = list(family.tokenizer("Ok", add_special_tokens=False).input_ids)

    def answer(number: int, body: dict[str, Any]) -> Response:
        return Response(json.dumps(completion("Ok", "stop", token_ids=[*word, EOS], stop_reason=EOS)))

    fake.fault = answer
    asked = tasks(2, sampling=SamplingConfig(n=2, temperature=0.7, top_p=0.9, top_k=5, seed=1), stop=("#",))
    config = fake.config(prompt_as="auto", models={"rl": "org/rl"})
    evaluate_outcomes(family, asked, tmp_path / "e", config)
    assert len(fake.bodies) == 8
    assert {body["model"] for body in fake.bodies} == {"base", "org/rl"}
    ids = list(family.tokenizer("p0").input_ids)
    mine = [body for body in fake.bodies if body["prompt"] == ids and body["model"] == "base"]
    assert len({body["seed"] for body in mine}) == 2
    seeds = {name: {body["seed"] for body in fake.bodies if body["model"] == name} for name in ("base", "org/rl")}
    assert seeds["base"] == seeds["org/rl"]
    told = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "stop": ["#"], "stop_token_ids": [EOS], "min_p": 0,
            "repetition_penalty": 1}  # fmt: skip
    assert told.items() <= {key: value for key, value in mine[0].items() if key != "prompt"}.items()
    engine = EvaluationSummary.load(tmp_path / "e" / "summary.json").engine
    assert engine is not None
    assert (engine.name, engine.version, engine.prompt_as, engine.n_tokenized) == ("vllm", "9.8.7", "ids", 0)
    assert engine.sampling["t"]["temperature"] == 0.7
    assert engine.models == {"base": "base", "rl": "org/rl"}


def test_auto_turns_to_text_where_ids_are_not_understood(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    fake.fault = lambda number, body: (
        None if isinstance(body["prompt"], str) else Response("prompt must be a string", 400)
    )
    evaluate_outcomes(family, tasks(5), tmp_path / "e", fake.config(prompt_as="auto"))
    assert len(fake.bodies) == 11
    engine = EvaluationSummary.load(tmp_path / "e" / "summary.json").engine
    assert engine is not None
    assert engine.prompt_as == "text"


def test_another_tokenizer_on_the_server_is_found(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Response:
        return Response(json.dumps({**completion("X"), "usage": {"prompt_tokens": 9}}))

    fake.fault = answer
    with pytest.raises(EndpointError, match=r"reads 9 tokens.*gives 3"):
        evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config())
    fake.fault = lambda number, body: Response(json.dumps(completion("X", token_ids=[5, 6, 7])))
    with pytest.raises(InputError, match=r"The server's answer for model base on sample q0.*decode to"):
        evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config())


@pytest.mark.parametrize("ids", [None, [70] * 7])
def test_a_server_that_ignores_the_limit_is_found(
    family: ModelFamily, fake: Fake, tmp_path: Path, ids: list[int] | None
) -> None:
    text = "a" * 40 if ids is None else str(family.tokenizer.decode(ids))
    more = {} if ids is None else {"token_ids": ids}
    fake.fault = lambda number, body: Response(json.dumps(completion(text, **more)))
    with pytest.raises(EndpointError, match=r"sample q0.*tokens, but was asked for at most 6; use a server"):
        evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config())


def test_cut_stopped_and_ended_answers(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    answers = {
        "p0": completion("P0", "length"),
        "p1": completion("P1#more", "length"),  # transformers leaves the stop text in the answer
        "p2": completion("P2<eos>", "stop"),
        "p3": completion("", "stop"),
    }
    fake.fault = lambda number, body: Response(json.dumps(answers[body["prompt"]]))
    outcomes = evaluate_outcomes(family, tasks(4, stop=("#",)), tmp_path / "e", fake.config())
    found = [(r.response, r.finish) for r in outcomes.records if r.model == "base"]
    assert found == [("P0", "length"), ("P1", "stop"), ("P2", "stop"), ("", "stop")]


@pytest.mark.parametrize(
    ("status", "mend"), [(404, "evaluate.endpoint.models"), (422, "correct the request's settings")]
)
def test_refused_requests_are_not_repeated(
    status: int, mend: str, family: ModelFamily, fake: Fake, tmp_path: Path
) -> None:
    fake.fault = lambda number, body: Response("no such model", status)
    with pytest.raises(EndpointError, match=f"{status}: no such model.*{mend}"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", fake.config())
    assert len(fake.bodies) == 1


def test_no_server_is_one_sentence(family: ModelFamily, tmp_path: Path) -> None:
    config = EvaluateConfig(generation="endpoint", endpoint={"base_url": "http://127.0.0.1:9/v1"})  # type: ignore[arg-type]
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1 cannot be reached.*start it"):
        evaluate_outcomes(family, tasks(), tmp_path / "e", config)
    assert not (tmp_path / "e").exists()


def test_settings_that_a_server_cannot_follow(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top_k = 5 has no field"):
        evaluate_outcomes(
            family, tasks(1, sampling=SamplingConfig(temperature=1, top_k=5)), tmp_path / "e", fake.config()
        )
    with pytest.raises(ConfigError, match=r"names 'sft', but the models are base, rl"):
        evaluate_outcomes(family, tasks(1), tmp_path / "e", fake.config(models={"sft": "x"}))
    assert not fake.bodies


def test_inside_a_running_event_loop_as_in_a_notebook(family: ModelFamily, fake: Fake, tmp_path: Path) -> None:
    import asyncio

    async def cell() -> int:
        return len(evaluate_outcomes(family, tasks(3), tmp_path / "e", fake.config()).records)

    assert asyncio.run(cell()) == 6


def test_prompts_follow_the_text_rule(fake: Fake, tmp_path: Path) -> None:
    from tests.builders import build_family, build_tokenizer

    paths = build_family(tmp_path / "chat", names=("base", "rl"), max_context=128)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[me]"
    for path in paths.values():
        tokenizer.save_pretrained(path)
    family, asked = ModelFamily.load(paths), tasks(1, max_new_tokens=32, text=TextConfig(chat_template=True))
    for prompt_as in ("ids", "text"):
        evaluate_outcomes(family, asked, tmp_path / prompt_as, fake.config(prompt_as=prompt_as))
    ids = tokenizer("<bos>[user]p0[me]", add_special_tokens=False).input_ids
    assert [body["prompt"] for body in fake.bodies] == [ids, ids, "[user]p0[me]", "[user]p0[me]"]
    assert tokenizer("[user]p0[me]").input_ids == ids  # the server adds BOS, so it must not be in the text
