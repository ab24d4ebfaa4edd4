"""Logs of Inspect as rollouts, with a stand-in for inspect-ai that has the attributes of its log objects."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mechprobe.errors import ConfigError, DependencyError, InputError
from mechprobe.models.family import ModelFamily
from mechprobe.sweep.stage import sweep

LOGS: dict[str, Any] = {}


def message(role: str, text: str) -> SimpleNamespace:
    return SimpleNamespace(role=role, text=text)


def sample(
    number: int, response: str, *, epoch: int = 1, stop: str = "stop", roles: tuple[str, ...] = ()
) -> SimpleNamespace:
    prompt = f"{number}+{number}="
    messages = [message("user", prompt), message("assistant", response), *(message(role, "") for role in roles)]
    output = SimpleNamespace(completion=response, stop_reason=stop)
    return SimpleNamespace(id=f"q{number}", epoch=epoch, input=prompt, messages=messages, output=output, error=None)


def log(samples: list[SimpleNamespace], status: str = "success") -> SimpleNamespace:
    told = SimpleNamespace(model="vllm/org/name", packages={"inspect_ai": "0.3.1"})
    return SimpleNamespace(status=status, eval=told, samples=samples)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for logs; `LOGS` holds what reading one of its files gives."""
    package, module = ModuleType("inspect_ai"), ModuleType("inspect_ai.log")
    module.read_eval_log = lambda path: LOGS[Path(path).name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inspect_ai", package)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", module)
    return tmp_path


def benchmark(questions: Path, folder: Path, **found: Any) -> dict[str, Any]:
    for model, content in found.items():
        LOGS[f"{model}.eval"] = content
        (folder / f"{model}.eval").write_text(model)
    places = {model: str(folder / f"{model}.eval") for model in found}
    sampling = {"n": 2, "temperature": 1.0}
    return {
        "sums": {
            "file": str(questions),
            "scorer": "numeric",
            "max_new_tokens": 8,
            "sampling": sampling,
            "inspect": places,
        }
    }


@pytest.fixture
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})


def test_samples_of_a_log_are_scored_by_our_rules(
    family: ModelFamily, questions: Path, logs: Path, tmp_path: Path
) -> None:
    base = [sample(i, "1", epoch=e) for e in (1, 2) for i in range(6)]
    rl = [
        sample(i, str(2 * i), epoch=e, stop="max_tokens" if (i, e) == (5, 2) else "stop")
        for e in (1, 2)
        for i in range(6)
    ]
    found = sweep(family, benchmark(questions, logs, base=log(base), rl=log(rl)), out=tmp_path / "sweep")
    cell = found.cells["sums"]["rl"]
    assert cell.value.value == pytest.approx(11 / 12)
    assert cell.finish == {"stop": 11, "length": 1, "unfinished": 0}
    assert cell.engine is not None
    assert (cell.engine.name, cell.engine.version) == ("Inspect (vllm)", "0.3.1")
    assert found.cells["sums"]["base"].value.value == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"stop": "content_filter"}, "stopped by 'content_filter'"),
        ({"roles": ("assistant",)}, "messages user, assistant, assistant"),
        ({"roles": ("tool",), "stop": "tool_calls"}, "stopped by 'tool_calls'"),
    ],
)
def test_samples_that_no_rule_can_score_are_refused(
    family: ModelFamily, questions: Path, logs: Path, tmp_path: Path, spoil: dict[str, Any], message: str
) -> None:
    rows = [sample(0, "0", **spoil), *(sample(i, "1") for i in range(1, 6))]
    with pytest.raises(InputError, match=message):
        sweep(family, benchmark(questions, logs, base=log(rows), rl=log(rows)), out=tmp_path / "sweep")


def test_unfinished_and_missing_logs_are_refused(
    family: ModelFamily, questions: Path, logs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="status 'error'"):
        sweep(family, benchmark(questions, logs, base=log([], "error"), rl=log([])), out=tmp_path / "sweep")
    given = benchmark(questions, logs, base=log([]), rl=log([]))
    (logs / "base.eval").unlink()
    with pytest.raises(InputError, match=r"base.eval does not exist"):
        sweep(family, given, out=tmp_path / "sweep")


def test_without_inspect_the_error_says_what_to_install(
    family: ModelFamily, questions: Path, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = benchmark(questions, logs, base=log([]), rl=log([]))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(DependencyError, match="pip install inspect-ai"):
        sweep(family, given, out=tmp_path / "sweep")
    with pytest.raises(ConfigError, match="give one of them"):
        sweep(family, {"sums": {**given["sums"], "rollouts": ["x"]}}, out=tmp_path / "sweep")
