"""Settings of the whole suite (one thread, no network, no broken CPU instructions), and the tiny model families."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import gc
import importlib.util
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not torch.cuda.is_available():
    # Triton reads this variable when it is first imported, and transformers imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("same cases", derandomize=True)
settings.load_profile("same cases")
"""The same cases every time, so that only a change of the code can fail the suite; `make test-all` draws new ones."""


def _load(name: str) -> ModuleType:
    """Import a module beside this file as ``tests.<name>``, although ``tests`` is not a package."""
    full = f"tests.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


_load("type_checks").install()
_load("builders")
_load("zoo")


LONG = (
    "docs/test_documentation.py", "cli/test_end_to_end.py", "cache/harvest/test_live.py", "interventions/test_planted.py", "lab/test_build.py",
    "test_readme.py", "experiments/test_lab_studies.py", "experiments/test_paper_a_cost.py", "emergence/test_stage.py",
    "cache/harvest/test_ranks.py", "cache/test_resume.py", "cache/store/test_disk.py", "cache/test_kills.py",
    "features/table/test_planted_classes.py", "cli/test_run_folder.py", "posttrain/test_stage.py",
)  # fmt: skip
"""Files of about half a minute. They start first, because each file runs in one process and a late start delays the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    _keep_from_collections()


def _keep_from_collections() -> None:
    """Collect garbage once, and exclude the remaining objects from later collections.

    Most of them belong to imported libraries. A full collection visits a million of them, and releasing a model triggers one,
    which would take half the time of many tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def light_collections() -> Iterator[None]:
    """Exclude libraries that a module has imported from the collections of the next modules."""
    yield
    _keep_from_collections()


@pytest.fixture(scope="session", autouse=True)
def empty_working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run tests in an empty folder, because commands without ``--run`` would read a run that `make demo` left in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working_directory"))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test that tries to reach another machine; servers that a test starts on this one are allowed."""
    patch = pytest.MonkeyPatch()
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")):
            return connect(self, address)
        raise AssertionError(f"a test tried to connect to {address}")

    patch.setattr(socket.socket, "connect", guarded)
    patch.setattr(socket.socket, "connect_ex", guarded)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def short_lab_answers() -> Iterator[None]:
    """Shorten responses, because models of a small lab never end one, and 48 tokens each would take most of a build."""
    import mechprobe.lab.run_config  # noqa: F401 - reads the original value when it is imported

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechprobe.lab.measure.MAX_NEW_TOKENS", 8)
        yield


def _family(tmp_path_factory: pytest.TempPathFactory, architecture: str) -> dict[str, Path]:
    return sys.modules["tests.builders"].build_family(tmp_path_factory.mktemp(f"{architecture}_family"), architecture)


@pytest.fixture(scope="session")
def llama_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of base, sft and rl, which are tiny random Llama models (3 layers, width 32, context 64). Do not write to them."""
    return _family(tmp_path_factory, "llama")


@pytest.fixture(scope="session")
def qwen3_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same for Qwen3 models (grouped-query attention, query and key norms)."""
    return _family(tmp_path_factory, "qwen3")


@pytest.fixture(scope="session")
def neox_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same for GPT-NeoX models (parallel attention and MLP, LayerNorms with bias)."""
    return _family(tmp_path_factory, "neox")
