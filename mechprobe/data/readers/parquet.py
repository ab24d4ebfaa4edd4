"""Parquet: one record per row. Only the needed columns are read, one batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record, columns_to_read
from mechprobe.errors import DependencyError, InputError, first_line

_BATCH_ROWS = 256


def records(config: PromptsConfig) -> Iterator[Record]:
    """Yield every row of the file, numbered from 1."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise DependencyError("Parquet files require pyarrow; run `pip install pyarrow`.") from None
    path = Path(config.file)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a Parquet file, or set prompts.format=dataset.")
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
        raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        place = f"cannot be read after row {number}" if number else "is not a readable Parquet file"
        raise InputError(f"{path} {place} ({first_line(error)}); write it again.") from None
