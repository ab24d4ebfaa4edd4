"""The events of a command as JSON lines, for programs that watch it."""

import errno
import json
import math
import os
import stat
import sys
import time
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal, get_args

from mechprobe.errors import ConfigError
from mechprobe.progress.memory_use import device_bytes, resident_bytes
from mechprobe.progress.meter import Meter
from mechprobe.progress.processes import is_first_process

Event = Literal["start", "loading", "progress", "finish", "warning"]
READER_SECONDS = 10.0
"""Time to wait until a named pipe has a reader."""
_LONGEST_LINE = 1 << 16


class EventLog:
    """Appends events to a file, one JSON object a line; every object has all keys, with null where there is no value.

    Attributes:
        path: The file.

    Raises:
        ConfigError: The file cannot be written, holds anything but events, or is a named pipe that nothing reads.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        try:
            _require_events(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: FileIO | None = _opened(path)
        except OSError as error:
            raise ConfigError(f"--log-json {path} cannot be written ({error.strerror}); give another file.") from None

    def write(
        self,
        event: Event,
        *,
        command: str,
        stage: str,
        work: Meter | None = None,
        task: str | None = None,
        ok: bool | None = None,
        message: str | None = None,
    ) -> None:
        """Write one event; ``task`` replaces the description of ``work``. A full disk ends the log, not the command."""
        counted = work if work is not None and work.counted else None
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "pid": os.getpid(),
            "event": event,
            "command": command or None,
            "stage": stage or None,
            "task": work.description if task is None and work is not None else task,
            "done": counted.done if counted else None,
            "total": counted.total if counted else None,
            "unit": counted.unit or None if counted else None,
            "rate": _rounded(counted.rate) if counted else None,
            "eta_s": _rounded(counted.seconds_left) if counted else None,
            "elapsed_s": _rounded(work.seconds) if work is not None else None,
            "rss_bytes": resident_bytes(),
            "device_bytes": device_bytes(),
            "ok": ok,
            "message": message,
            "values": {name: _plain(value) for name, value in counted.fields.items()} if counted else {},
        }
        if self._file is None:
            return
        try:
            # One write a line, which the system appends whole: several commands may have one log.
            self._file.write(f"{json.dumps(line, ensure_ascii=False, allow_nan=False)}\n".encode(errors="replace"))
        except (OSError, ValueError):
            self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _require_events(path: Path) -> None:
    """Refuse a file that something else has written, which lines at its end would damage."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or not found.st_size or _is_stream(found):
            return
        with path.open("rb") as file:
            first = json.loads(file.readline(_LONGEST_LINE))
    except FileNotFoundError:
        return
    except ValueError:  # no JSON, or no text
        first = None
    if not isinstance(first, dict) or first.get("event") not in get_args(Event) or "elapsed_s" not in first:
        raise ConfigError(
            f"--log-json {path} holds something other than events, and stays as it is; give another file."
        )


def _is_stream(found: os.stat_result) -> bool:
    """Whether a file is where this process writes anyway, as /dev/stderr is."""
    streams = [each for number in (1, 2) if (each := _stat(number)) is not None]
    return any(os.path.samestat(found, each) for each in streams)


def _stat(descriptor: int) -> os.stat_result | None:
    try:
        return os.fstat(descriptor)
    except OSError:  # it is closed
        return None


def _opened(path: Path) -> FileIO:
    """The file, open at its end; opening a named pipe waits for its reader, but not for ever."""
    begun = time.monotonic()
    said = False
    while True:
        try:
            # Where nothing reads a named pipe, opening it would wait without a word.
            file = FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))
        except OSError as error:
            if error.errno != errno.ENXIO or not path.is_fifo():
                raise
        else:
            os.set_blocking(file.fileno(), True)
            return file
        waited = time.monotonic() - begun
        if waited > READER_SECONDS:
            raise ConfigError(f"--log-json {path} is a named pipe that nothing reads; start its reader first.")
        if waited > 0.3 and not said and is_first_process():
            said = True
            sys.stderr.write(f"mechprobe: waiting up to {READER_SECONDS:g} s for a reader of --log-json {path}\n")
        time.sleep(0.05)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    """A value as JSON can express it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
