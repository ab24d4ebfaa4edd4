"""Hugging Face datasets: a folder written by ``save_to_disk``, a folder or file with data, or a name on the hub.

The `datasets` library no longer supports loading scripts, so no code of a dataset is run.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechprobe.data.config import HUB, PromptsConfig
from mechprobe.data.fields import Record, columns_to_read
from mechprobe.errors import DependencyError, InputError, MechprobeError, first_line
from mechprobe.records import read_lines

_BUILDERS = {".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_OF_LINES = (".csv", ".json", ".jsonl", ".txt")
_FAILED_FILE = re.compile(r"Failed to read file '(?P<file>.+?)' with error")


def records(config: PromptsConfig, also: Sequence[str] = ()) -> Iterator[Record]:
    """Yield every row of the chosen split, numbered from 1.

    Saved datasets and hub datasets are memory-mapped; data files are streamed without a copy.
    """
    name = config.file.removeprefix(HUB)
    with _translate_errors(config, name):
        rows = _chosen_split(_load(config, name), config, name)
        if rows.column_names is not None:
            rows = rows.select_columns(columns_to_read(config, list(rows.column_names), name, also))
    number, iterator = 0, iter(rows)
    while True:
        with _translate_errors(config, name, after=number):
            fields = next(iterator, None)
        if fields is None:
            return
        number += 1
        yield Record(f"{name}: row {number}", number, fields)


def _load(config: PromptsConfig, name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DependencyError("Datasets require the package datasets; run `pip install datasets`.") from None
    datasets.disable_progress_bars()
    if config.file.startswith(HUB):
        if not name.strip("/"):
            raise InputError(f"'{config.file}' has no name of a dataset; write hub:NAME, for example hub:org/name.")
        return datasets.load_dataset(name, config.subset or None, revision=config.revision or None)
    path = Path(name)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file, the folder of a dataset, or hub:NAME.")
    if path.is_file():
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        if suffix.lower() not in _BUILDERS:
            raise InputError(f"{path} is not a known data file; the known suffixes are {', '.join(_BUILDERS)}.")
        return datasets.load_dataset(_BUILDERS[suffix.lower()], data_files=str(path), streaming=True)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _require_rows(path)
        return datasets.load_from_disk(str(path))
    if not any(item.is_file() for item in path.rglob("*")):
        raise InputError(f"{path} contains no data; give a folder written by save_to_disk, or one with data files.")
    return datasets.load_dataset(str(path), streaming=True)


def _require_rows(path: Path) -> None:
    """Refuse a saved split without rows, which has no data file and which the library cannot load again."""
    for state in sorted(path.rglob("state.json")):
        if not any(state.parent.glob("*.arrow")):
            raise InputError(f"{state.parent} contains no prompts (no .arrow file); save a dataset with rows.")


def _chosen_split(loaded: Any, config: PromptsConfig, name: str) -> Any:
    """Return the split that the settings name, or the only one."""
    if not isinstance(loaded, dict):
        own = str(getattr(loaded, "split", None) or "")
        if config.split and config.split != own:
            raise InputError(f"{name} has no split '{config.split}' (it has {own or 'no splits'}); set prompts.split.")
        return loaded
    names = ", ".join(loaded)
    if config.split:
        if config.split not in loaded:
            raise InputError(f"{name} has no split '{config.split}' (it has {names}); set prompts.split.")
        return loaded[config.split]
    if len(loaded) != 1:
        raise InputError(f"{name} has several splits ({names}); choose one with prompts.split.")
    return next(iter(loaded.values()))


class _LogCapture(logging.Handler):
    """Captures the library's log. Only the log names the file that could not be read, not the exception."""

    file: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        found = _FAILED_FILE.search(record.getMessage())
        self.file = Path(found["file"]) if found else self.file


@contextmanager
def _captured_log() -> Iterator[_LogCapture]:
    logger, capture = logging.getLogger("datasets"), _LogCapture()
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [capture], False
    try:
        yield capture
    finally:
        logger.handlers, logger.propagate = before


@contextmanager
def _translate_errors(config: PromptsConfig, name: str, after: int = 0) -> Iterator[None]:
    """Convert the library's errors to `InputError`; it has no error class for unusable data."""
    with _captured_log() as capture:
        try:
            yield
        except MechprobeError:
            raise
        except PermissionError as error:
            raise InputError(f"{error.filename or name} cannot be read: permission denied.") from None
        except Exception as error:  # noqa: BLE001 - see above
            raise _input_error(config, name, after, capture.file, error) from None


def _input_error(config: PromptsConfig, name: str, after: int, file: Path | None, error: BaseException) -> InputError:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = first_line(root)
    if config.file.startswith(HUB):
        return InputError(
            f"The hub did not provide the dataset {name} ({reason}); check name, subset and split, or download it first."
        )
    place = file if file is not None and file.is_file() else Path(name)
    if isinstance(root, UnicodeDecodeError) and place.is_file() and place.suffix.lower() in _OF_LINES:
        list(read_lines(place, kind="data file"))  # raises an error that names the line, unlike the library's error
    if "EOF inside string" in reason:
        reason += ", an unclosed quote"
    return InputError(
        f"{place} cannot be read as a dataset{f' after row {after}' if after else ''} ({reason}); correct the file."
    )
