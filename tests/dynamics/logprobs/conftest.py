"""A tiny family with a checkpoint, and files of traces for it."""

from pathlib import Path

import pytest

from tests.builders import build_family


@pytest.fixture(scope="session")
def checkpoint_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base, a checkpoint of rl, rl, and sft; do not write to their folders."""
    names = ("base", "rl@step_000002", "rl", "sft")
    return build_family(tmp_path_factory.mktemp("logprobs_family"), names=names)
