"""Readers of prompt sources. Each yields the records of a source in order, with at most one batch of them in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mechprobe.data import hf_dataset
from mechprobe.data.config import PromptsConfig
from mechprobe.data.fields import Record, columns_to_read
from mechprobe.environment import require
from mechprobe.errors import InputError, first_line
from mechprobe.records import MAX_LINE_CHARS, read_jsonl, read_lines

_BATCH_ROWS = 256


def read_records(config: PromptsConfig, also: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the records of a source in order, numbered from 1 by line or row.

    A table is read by columns: those of the fields of prompts, and those of ``also`` that it has.

    Raises:
        ConfigError: The format is unknown.
        InputError: The source cannot be read, or a document is longer than `MAX_LINE_CHARS` characters; the message names
            the place.
    """
    path = Path(config.file)
    match config.detected():
        case "jsonl":
            yield from (Record(f"{path}:{number}", number, item) for number, item in read_jsonl(path))
        case "text":
            for number, line in read_lines(path, kind="text file"):
                yield Record(f"{path}:{number}", number, {config.prompt_field: line})
        case "paragraphs":
            yield from _paragraphs(path, config.prompt_field)
        case "parquet":
            yield from _parquet(path, config, also)
        case _:
            yield from hf_dataset.records(config, also)


def _paragraphs(path: Path, field: str) -> Iterator[Record]:
    r"""Yield every group of consecutive lines that are not blank, joined by ``\n`` and numbered by its first line."""
    first, last, held, size = 0, 0, list[str](), 0
    for number, line in read_lines(path, kind="text file"):
        if held and number != last + 1:
            yield Record(f"{path}:{first}", first, {field: "\n".join(held)})
            held, size = [], 0
        first = first if held else number
        last = number
        held.append(line)
        size += len(line) + 1
        if size > MAX_LINE_CHARS:
            raise InputError(f"{path}:{first}: more than {MAX_LINE_CHARS:,} characters without a blank line; split it.")
    if held:
        yield Record(f"{path}:{first}", first, {field: "\n".join(held)})


def _parquet(path: Path, config: PromptsConfig, also: Sequence[str]) -> Iterator[Record]:
    """Yield every row of a Parquet file, of which only the needed columns are read."""
    arrow, parquet = (require(name, "A Parquet file") for name in ("pyarrow", "pyarrow.parquet"))
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a Parquet file, or set prompts.format=dataset.")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = columns_to_read(config, file.schema_arrow.names, str(path), also)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
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
