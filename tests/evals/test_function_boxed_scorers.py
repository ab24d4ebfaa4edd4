"""Function scorers with their fingerprints, and the scorer that needs math-verify."""

import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from mechprobe.errors import ConfigError, DependencyError, InputError
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import tasks_fingerprint
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.records import Sample


def begins(response: str, answer: str) -> bool:
    return response.startswith(answer)


def tolerant(within: float) -> Callable[[str, str], str]:
    def judge(response: str, answer: str) -> str:
        try:
            return "right" if abs(float(response) - float(answer)) <= within else "wrong"
        except ValueError:
            return "unparsed"

    return judge


def fingerprint(judge: object) -> str:
    return tasks_fingerprint([Task("t", (Sample("1", "t", "p", "a"),), scorer(judge))])  # type: ignore[arg-type]


def test_a_function_returns_a_bool_or_an_outcome() -> None:
    assert scorer(begins).score("abc", "ab") == "right"
    assert scorer(begins).score("abc", "b") == "wrong"
    assert [scorer(tolerant(0.1)).score(text, "1") for text in ("1.05", "2", "x")] == ["right", "wrong", "unparsed"]


@pytest.mark.parametrize("result", [None, 1, 0.5, "correct"])
def test_any_other_return_value_is_an_error(result: object) -> None:
    with pytest.raises(ConfigError, match="True, False, 'right', 'wrong' or 'unparsed'"):
        scorer(lambda response, answer: result).score("a", "b")


def test_an_exception_in_a_function_becomes_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"'x' \(ZeroDivisionError: "):
        scorer(lambda response, answer: 1 / 0).score("x", "y")


def test_the_fingerprint_knows_source_defaults_and_closure() -> None:
    assert fingerprint(begins) == fingerprint(begins)
    assert fingerprint(tolerant(0.1)) == fingerprint(tolerant(0.1))
    others = [
        begins,
        tolerant(0.1),
        tolerant(0.2),
        lambda response, answer: response == answer,
        lambda response, answer, k=1: response == answer,
        partial(begins, answer="x"),
        partial(begins, answer="y"),
        "exact",
    ]
    assert len({fingerprint(judge) for judge in others}) == len(others)


@pytest.mark.parametrize("judge", [str.startswith, partial(begins, answer=object())], ids=["builtin", "object"])
def test_a_function_without_stable_text_is_an_error(judge: object) -> None:
    with pytest.raises(ConfigError, match=r"source|stable text"):
        scorer(judge)  # type: ignore[arg-type]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory of the user."""
    (tmp_path / "my_scorers_for_a_test.py").write_text("def same(response, answer):\n    return response == answer\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return "my_scorers_for_a_test"


def test_a_function_by_name(module: str, tmp_path: Path) -> None:
    judge = scorer(f"python:{module}:same")
    assert judge.spec == f"python:{module}:same"
    assert judge.identity.startswith(f"{judge.spec}#")
    assert judge.score("a", "a") == "right"
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "p", "answer": "3"}\n')
    assert load_tasks(path, scorer_spec=f"python:{module}:same")[0].scorer == judge


def test_unknown_modules_and_functions_are_errors(module: str) -> None:
    with pytest.raises(ConfigError, match=f"{module}.*other"):
        scorer(f"python:{module}:other")
    with pytest.raises(ConfigError, match="no_such_module"):
        scorer("python:no_such_module:f")
    with pytest.raises(ConfigError, match="python:<MODULE>:<FUNCTION>"):
        scorer("python:f")


def test_functions_are_pickled_by_name_or_raise(module: str) -> None:
    judge = scorer(f"python:{module}:same")
    assert ForkingPickler.loads(ForkingPickler.dumps(judge)) == judge
    with pytest.raises(ConfigError, match=r"intervene\.workers = 1"):
        ForkingPickler.dumps(scorer(lambda response, answer: True))


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}.", "0.5", "right"),
        (r"\boxed{x+1}", "1+x", "right"),
        (r"\boxed{2}, no, \boxed{4}", "4", "right"),
        (r"\boxed{0.5}", r"$\frac12$", "right"),
        (r"\boxed{(1,2)}", r"\boxed{(1,2)}", "right"),
        (r"\boxed{3}", "4", "wrong"),
        (r"\boxed{x+1}", "x", "wrong"),
        ("the answer is 4", "4", "unparsed"),
        (r"\boxed{4", "4", "unparsed"),
        (r"\boxed{ }", "4", "unparsed"),
        (r"\boxed{4} and \boxed{5", "4", "right"),
    ],
)
def test_boxed_by_hand(response: str, answer: str, expected: str) -> None:
    assert scorer("boxed").score(response, answer) == expected


def test_boxed_rejects_an_answer_that_is_not_mathematics(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "p", "answer": "1/2"}\n{"prompt": "p", "answer": "a $ b"}\n')
    with pytest.raises(InputError, match=r":2: .*a \$ b"):
        load_tasks(path, scorer_spec="boxed")


def test_boxed_without_math_verify_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechprobe.evals.scorers.rules.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'mechprobe\[evals\]'"):
        scorer("boxed")
