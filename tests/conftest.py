"""Settings of the whole suite: one thread, no network, no broken CPU instructions; and the tiny families."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib.util
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not torch.cuda.is_available():
    # Triton reads it when it is first imported, and transformers imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"

if "tests.builders" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("tests.builders", Path(__file__).with_name("builders.py"))
    assert _spec is not None
    assert _spec.loader is not None
    builders = importlib.util.module_from_spec(_spec)
    sys.modules["tests.builders"] = builders
    _spec.loader.exec_module(builders)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Any attempt to reach another machine fails the test; sockets inside this machine's file system pass."""
    patch = pytest.MonkeyPatch()
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        raise AssertionError(f"a test tried to connect to {address}")

    patch.setattr(socket.socket, "connect", guarded)
    patch.setattr(socket.socket, "connect_ex", guarded)
    yield
    patch.undo()


def _family(tmp_path_factory: pytest.TempPathFactory, architecture: str) -> dict[str, Path]:
    return sys.modules["tests.builders"].build_family(tmp_path_factory.mktemp(f"{architecture}_family"), architecture)


@pytest.fixture(scope="session")
def llama_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of base, sft and rl: three tiny random Llama models (3 layers, width 32, context 64). Read only."""
    return _family(tmp_path_factory, "llama")


@pytest.fixture(scope="session")
def qwen3_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with Qwen3 models (grouped-query attention, query and key norms)."""
    return _family(tmp_path_factory, "qwen3")


@pytest.fixture(scope="session")
def neox_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with GPT-NeoX models (parallel attention and MLP, layer norms with bias)."""
    return _family(tmp_path_factory, "neox")
