"""File systems without locks, and files that cannot be read for reasons other than damage."""

import errno
import fcntl
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from mechprobe.cache.store import disk
from mechprobe.cache.store.disk import reading_hdf5, write_hdf5
from mechprobe.errors import StoreError
from mechprobe.locks import folder_lock, sole_writer

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, 524, errno.EROFS, errno.EACCES, errno.ENOSYS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_hdf5(tmp_path / "a.h5", {"x": np.arange(5)}, {})
    return tmp_path / "a.h5"


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_a_writer_goes_on_with_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(_handle: int, _operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr("mechprobe.locks._without_locks", set())
    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with sole_writer(tmp_path), folder_lock(tmp_path, fcntl.LOCK_EX) as release:
                release()
                done.append(True)
    assert done == [True, True]
    assert [record.getMessage().count("cannot be locked") for record in caplog.records] == [1]


def test_hdf5_takes_no_lock(path: Path) -> None:
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # h5py's default would fail here
        with reading_hdf5(path) as file:
            assert file["x"][:].tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_this_process_has_open_is_read(path: Path) -> None:
    with h5py.File(path), reading_hdf5(path) as file:
        assert len(file["x"]) == 5


def test_only_a_damaged_file_is_called_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_args: object, **_options: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(disk.h5py, "File", unreadable)
        with pytest.raises(StoreError, match="cannot be read: Permission denied"), reading_hdf5(path):
            pass
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="is damaged"), reading_hdf5(path):
        pass
    path.unlink()
    with pytest.raises(StoreError, match="does not exist"), reading_hdf5(path):
        pass
