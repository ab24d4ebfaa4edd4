"""Readers of prompt files, one a format: each yields the records of a source in order, one at a time."""

from collections.abc import Iterator

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record


def read_records(config: PromptsConfig) -> Iterator[Record]:
    """Yield the records of a source in order; nothing but the record at hand (and a batch of it) is in memory.

    Raises:
        ConfigError: The format cannot be told.
        InputError: The source cannot be read; the text says where.
    """
    from mechprobe.data.readers import hf_dataset, jsonl, parquet, text

    match config.detected():
        case "jsonl":
            yield from jsonl.records(config)
        case "text":
            yield from text.lines(config)
        case "paragraphs":
            yield from text.paragraphs(config)
        case "parquet":
            yield from parquet.records(config)
        case _:
            yield from hf_dataset.records(config)
