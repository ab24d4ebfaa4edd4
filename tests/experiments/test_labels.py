"""Labels from a model on a server, and their detection scores on contexts that they were not made from."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import mechprobe as mp
from experiments.labels.endpoint import detection, held_out, labeler, marked, server, silent_contexts


def context(tokens: str, peak: int, row: int, acts: list[float] | None = None) -> dict[str, Any]:
    acts = acts or [2.0 * (place == peak) for place in range(len(tokens))]
    return {"tokens": list(tokens), "peak": peak, "row": row, "sample": row // 10, "activations": {"joint": acts}}


ENTRY = {
    "feature": 3,
    "examples": [context("ab7", 2, 12), context("x7y", 1, 31)],
    "quantiles": [{"examples": [context("7cd", 0, 50), context("ab7", 2, 12)]}, {"examples": [context("q7q", 1, 71)]}],
}


def test_a_server_labels_and_is_asked_with_its_key(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: Request) -> Response:
        asked.append({**json.loads(request.data), "key": request.headers.get("Authorization")})
        return Response(json.dumps({"choices": [{"message": {"content": " the digit 7 \n"}}]}))

    httpserver.expect_request("/v1/chat/completions", method="POST").respond_with_handler(answer)
    monkeypatch.setenv("SOME_KEY", "secret")
    ask = server(httpserver.url_for("/v1"), "tiny", "SOME_KEY")
    labels = mp.label_features([ENTRY], labeler(ask), name="tiny")
    assert labels.labels == {3: "the digit 7"}
    [request] = asked
    assert (request["model"], request["temperature"], request["key"]) == ("tiny", 0, "Bearer secret")
    assert "ab«7»\n\nx«7»y" in request["messages"][0]["content"]
    assert "7cd" not in request["messages"][0]["content"]


def test_only_the_most_active_tokens_are_marked() -> None:
    assert marked(context("abc", 0, 5, [4.0, 2.0, 1.9])) == "«a»«b»c"


def test_held_out_contexts_are_not_those_of_the_label() -> None:
    assert [found["row"] for found in held_out(ENTRY)] == [50, 71]


def test_a_label_that_fits_detects_and_one_that_says_nothing_does_not() -> None:
    active, silent = held_out(ENTRY), [context("abc", 0, 90), context("xyz", 1, 95)]

    def reader(message: str) -> str:
        text = message.split("---")[1]
        return "Yes." if "digit" not in message or "7" in text else "no, it is not"

    fits = detection(reader, "the digit 7", active, silent)
    assert (fits["balanced"], fits["found"][0], fits["rejected"][0], fits["undecided"]) == (1.0, 1.0, 1.0, 0)
    assert fits["found"][3] == 2
    assert fits["found"][1] < 0.5  # two contexts say little
    assert detection(reader, "text", active, silent)["balanced"] == 0.5
    unsure = detection(lambda _: "perhaps", "text", active, silent)
    assert (unsure["balanced"], unsure["undecided"]) == (0.0, 4)


def test_contexts_without_the_feature_are_checked_by_the_dictionary() -> None:
    acts = torch.zeros(100, 5)
    acts[91, 3] = 1.0  # the second token of the first context
    store = SimpleNamespace(rows=lambda start, stop: acts[start:stop])
    dictionary = SimpleNamespace(encode=lambda x: x, device="cpu")
    others = [context("abc", 0, 90), context("xyz", 1, 95), context("uvw", 0, 40)]
    found = silent_contexts(3, others, 5, crosscoder=dictionary, store=store, seed=0)  # type: ignore[arg-type]
    assert sorted(one["row"] for one in found) == [40, 95]
    assert len(silent_contexts(3, others, 1, crosscoder=dictionary, store=store, seed=0)) == 1  # type: ignore[arg-type]
