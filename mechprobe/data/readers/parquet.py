"""Parquet: one record a row; only the columns that are asked for are read, a batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record, columns_to_read
from mechprobe.errors import DependencyError, InputError

_BATCH_ROWS = 256


def records(config: PromptsConfig) -> Iterator[Record]:
    """Every row of the file, numbered from 1."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("Parquet files need pyarrow; pip install pyarrow.") from None
    path = Path(config.file)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a Parquet file, or prompts.format = dataset.")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            columns = columns_to_read(config, known, str(path))
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}: row {number}", number, fields)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of a Parquet file.") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied.") from None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f"cannot be read after row {number}" if number else "is no Parquet file that can be read"
        raise InputError(f"{path} {place} ({_first(error)}).") from None


def _first(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:160]
