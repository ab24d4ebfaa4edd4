"""A tiny random base with a prompts file, and settings for short trainings."""

from pathlib import Path

import pytest

from tests.builders import build_family
from tests.sums import write_prompts


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two blocks with one token per character."""
    folder = tmp_path_factory.mktemp("posttrain-base")
    return build_family(folder, names=("base",), n_layers=2, d_model=16)["base"]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts file of every arm."""
    return write_prompts(tmp_path_factory.mktemp("posttrain-prompts") / "prompts.jsonl")
