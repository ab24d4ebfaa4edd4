"""The events of a command as JSON lines, for programs that watch it."""

import json
import math
import os
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from mechprobe.errors import ConfigError
from mechprobe.progress.memory_use import device_bytes, resident_bytes
from mechprobe.progress.meter import Meter

Event = Literal["start", "loading", "progress", "finish", "warning"]


class EventLog:
    """Appends events to a file, one JSON object a line; every object has all keys, with null where there is no value.

    Attributes:
        path: The file.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: FileIO | None = path.open("ab", buffering=0)
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
