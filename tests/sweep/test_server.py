"""Responses of a sweep from an inference server."""

import json
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from mechprobe.errors import ConfigError, EndpointError
from mechprobe.evals.config import EndpointConfig
from mechprobe.evals.rollouts import client as client_module
from mechprobe.models.family import ModelFamily
from mechprobe.sweep.cells import load_cell
from mechprobe.sweep.config import SweepConfig
from mechprobe.sweep.stage import sweep


def test_a_server_answers_and_is_asked_only_for_what_is_missing(
    httpserver: HTTPServer,
    llama_family: dict[str, Path],
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    asked: list[tuple[str, str]] = []
    down = {"3+3="}

    def answer(request: Request) -> Response:
        body = request.get_json()
        if not isinstance(body["prompt"], str):
            return Response("text only", status=400)
        if body["model"] == "org/rl" and body["prompt"] in down:
            return Response("down", status=503)
        asked.append((body["model"], body["prompt"]))
        right = str(2 * int(body["prompt"][0])) if body["model"] == "org/rl" else "no"
        return Response(json.dumps({"choices": [{"text": right, "finish_reason": "stop"}]}))

    httpserver.expect_request("/v1/completions").respond_with_handler(answer)
    endpoint = EndpointConfig(base_url=httpserver.url_for("/v1"), models={"rl": "org/rl"}, max_retries=1, concurrency=1)
    config = SweepConfig(generation="endpoint", endpoint=endpoint)
    given = {"sums": {"file": str(questions), "scorer": "numeric", "max_new_tokens": 4}}
    with pytest.raises(EndpointError, match="failed 2 times"):
        sweep(family, given, out=tmp_path / "sweep", config=config)
    assert (tmp_path / "benchmarks" / "sums" / "base" / "manifest.json").is_file()
    down.clear()
    before = len(asked)
    found = sweep(family, given, out=tmp_path / "sweep", config=config)
    assert len(asked) - before < 6  # the answers of the interrupted cell are kept
    assert [found.cells["sums"][name].value.value for name in ("base", "rl")] == [0.0, 1.0]
    cell = load_cell(tmp_path / "benchmarks", "sums", "rl")
    assert cell.engine is not None
    assert cell.engine.models == {"rl": "org/rl"}
    assert found.benchmarks["sums"].source == "endpoint"


def test_a_missing_key_is_refused_before_any_work(
    llama_family: dict[str, Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = EndpointConfig(base_url="http://localhost:1/v1", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match=r"NO_SUCH_KEY is not set.*sweep\.endpoint"):
        sweep(
            ModelFamily.load({"base": llama_family["base"]}),
            {"sums": {"file": str(questions), "max_new_tokens": 4}},
            out=tmp_path / "sweep",
            config=SweepConfig(generation="endpoint", endpoint=endpoint),
        )
    assert not (tmp_path / "benchmarks").exists()
    with pytest.raises(ConfigError, match=r"set sweep\.endpoint\.base_url"):
        SweepConfig(generation="endpoint")
