"""Files: atomic writes with the project's errors, JSON, and what a killed process leaves."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mechprobe.errors import ArtifactError
from mechprobe.files import dump_json, read_frame, read_json, remove_partial_files, write_bytes, write_json


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})

    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_artifact_error_with_path_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"a\.bin.*No space left"):
        write_bytes(tmp_path / "a.bin", b"new")
    assert not list(tmp_path.iterdir())


def test_a_parent_that_is_a_file_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"file/a\.bin"):
        write_bytes(tmp_path / "file" / "a.bin", b"new")


def test_json_has_sorted_keys_and_null_for_nan() -> None:
    text = dump_json({"b": float("nan"), "a": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(text) == {"a": [None, 1.5], "b": None, "c": "x"}
    assert text.index('"a"') < text.index('"b"')


@pytest.mark.parametrize("content", [b"{", b"\xff", None])
def test_json_that_cannot_be_read_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"result\.json"):
        read_json(path)


def test_partial_files_and_folders_are_removed_at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "deep" / "step_3.partial").mkdir(parents=True)
    (tmp_path / "deep" / "step_3.partial" / "weights.1a.partial").write_text("half")
    (tmp_path / "a.txt.1b.partial").write_text("half")
    (tmp_path / "deep" / "whole.txt").write_text("whole")
    remove_partial_files(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "deep" / "whole.txt"]
    assert not list(tmp_path.rglob("*.partial"))


_READ = """
import resource, sys, threading
from pathlib import Path
from mechprobe.files import read_frame

path = Path(sys.argv[1])
read_frame(path, "This test")  # loads the libraries
import pyarrow
pyarrow.set_cpu_count(4)
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((int(line.split()[1]) << 10) + (6 << 20),) * 2)  # less than the stack of a thread
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print(read_frame(path, "This test").to_csv(index=False))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_a_table_is_read_where_no_thread_can_start(tmp_path: Path) -> None:
    frame = pd.DataFrame({"feature": [0, 1, 2], "fve": [0.5, 0.25, 0.125], "name": ["a", "b", "c"]})
    write_bytes(tmp_path / "t.parquet", frame.to_parquet(index=False))
    pd.testing.assert_frame_equal(read_frame(tmp_path / "t.parquet", "This test"), frame)
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path / "t.parquet")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == frame.to_csv(index=False).strip(), done.stderr
