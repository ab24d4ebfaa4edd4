"""Imports go to a lower rank only (DESIGN.md, section 2), read from the syntax trees, local imports included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANKS = {
    "errors": 0, "types": 0.1,  # tenths order modules within a rank of the design
    "config": 1, "random_state": 1, "artifacts": 1, "records": 1.1, "statistics": 1, "progress": 1, "markdown": 1,
    "models": 2, "data": 2,
    "activations": 3, "evals": 3,
    "features": 4,
    "interventions": 5,
    "report": 6, "lab": 6,
    "run_config": 6.9, "pipeline": 7, "doctor": 7, "cli": 8,
    "__init__": 9, "__main__": 9,
}  # fmt: skip
SAE_MAY_IMPORT = {
    "torch", "einops", "numpy", "safetensors", "pydantic", "pydantic_core", "jaxtyping", "sae_lens", "sae_training",
    "triton",
}  # fmt: skip
BANNED_NAMES = {"utils", "helpers", "common", "misc"}


def imported(path: Path) -> list[str]:
    """Every module that a file imports, as dotted names; ``from a.b import c`` gives ``a.b.c``."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def package_of(path: Path) -> str:
    """First name below mechprobe: a package or a module."""
    return path.relative_to(ROOT / "mechprobe").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "mechprobe").rglob("*.py"))


def test_every_package_has_a_rank() -> None:
    assert {package_of(path) for path in FILES} <= RANKS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = package_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] in ("experiments", "tests", "benchmarks"):
            pytest.fail(f"{path} imports {name}")
        if parts[0] == "mechprobe" and len(parts) > 1 and parts[1] in RANKS and parts[1] != own:
            assert RANKS[parts[1]] < RANKS[own], f"{path.relative_to(ROOT)} (rank {RANKS[own]}) imports {name}"


def test_features_and_evals_share_records_only() -> None:
    for path in (ROOT / "mechprobe" / "features").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("mechprobe.evals")], path
    for path in (ROOT / "mechprobe" / "evals").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("mechprobe.features")], path


def test_report_needs_no_models() -> None:
    for path in (ROOT / "mechprobe" / "report").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"torch", "transformers", "transformer_lens", "sae_training"}, path


def test_sae_training_knows_tensors_only() -> None:
    import sys

    for path in (ROOT / "sae_training").rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= SAE_MAY_IMPORT | set(sys.stdlib_module_names), (path, roots)


def test_no_dumping_grounds() -> None:
    files = [*FILES, *(ROOT / "sae_training").rglob("*.py")]
    assert not [path for path in files if path.stem in BANNED_NAMES]
