"""The size of files and functions, and the names of modules, stay within the limits of the house.

Who may import whom is in the contracts of import-linter in pyproject.toml.
"""

import ast
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("mechprobe", "sae_training") for path in (ROOT / package).rglob("*.py"))
BANNED_NAMES = {"utils", "helpers", "common", "misc"}
LONGEST_FILE, MEDIAN_FILE, FUNCTION_P90 = 350, 150, 25
STAGES = (
    *("localization", "cache", "dictionary", "features", "evals", "selection", "interventions", "report"),
    *("drift/divergence", "drift/weights", "drift/probe", "dynamics", "dynamics/logprobs", "posttrain", "sweep"),
)


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _function_lengths() -> list[int]:
    """Lines of every function without its docstring."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in FILES)
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [_span(function) - (_span(function.body[0]) if ast.get_docstring(function) else 0) for function in functions]


def _span(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_no_file_is_long() -> None:
    assert not {str(path.relative_to(ROOT)): _lines(path) for path in FILES if _lines(path) > LONGEST_FILE}


def test_most_files_and_functions_are_short() -> None:
    assert median(map(_lines, FILES)) <= MEDIAN_FILE
    assert quantiles(_function_lengths(), n=10)[-1] <= FUNCTION_P90


def test_no_dumping_grounds() -> None:
    assert not [path for path in FILES if path.stem in BANNED_NAMES]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_three_doors(stage: str) -> None:
    doors = {"stage.py", "config.py", "result.py"}
    assert doors <= {path.name for path in (ROOT / "mechprobe" / stage).glob("*.py")}
