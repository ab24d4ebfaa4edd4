"""Atomic writes: what a reader finds after success, failure and a killed process."""

import os
import threading
from pathlib import Path

import pytest

from sae_training import atomic


def test_write_bytes_replaces_a_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "config.json"
    for data in (b"first", b"second"):
        atomic.write_bytes(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.json"
    atomic.write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_interrupted_body_leaves_nothing(tmp_path: Path, kind: str):
    def write() -> None:
        with atomic.atomic_path(tmp_path / "result") as temporary:
            if kind == "folder":
                temporary.mkdir()
                temporary = temporary / "part"
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left_as", ["file", "folder"])
def test_the_remains_of_a_killed_process_are_removed(tmp_path: Path, left_as: str):
    remains = tmp_path / "result.partial"
    if left_as == "folder":
        remains.mkdir()
        (remains / "half").write_bytes(b"half")
    else:
        remains.write_bytes(b"half")
    with atomic.atomic_path(tmp_path / "result") as temporary:
        assert temporary == remains
        assert not temporary.exists()
        temporary.write_bytes(b"whole")
    assert (tmp_path / "result").read_bytes() == b"whole"
    assert not remains.exists()


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[tuple[str, bool]] = []
    sync, final = atomic.sync, tmp_path / "checkpoint"
    monkeypatch.setattr(atomic, "sync", lambda path: (synced.append((path.name, final.exists())), sync(path)))
    with atomic.atomic_path(final) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_bytes(b"w")
        (temporary / "state").write_bytes(b"s")
    assert sorted(synced[:2]) == [("state", False), ("weights", False)]
    assert synced[2:] == [("checkpoint.partial", False), (tmp_path.name, True)]
    assert sorted(path.name for path in final.iterdir()) == ["state", "weights"]


def test_concurrent_writers_of_one_path_leave_one_whole_file(tmp_path: Path):
    path = tmp_path / "manifest.json"
    contents = [bytes([65 + number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=atomic.write_bytes, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
