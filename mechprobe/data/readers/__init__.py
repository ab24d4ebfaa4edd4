"""Readers of prompt sources, one module per format. Each yields the records of a source in order."""

from collections.abc import Iterator

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record


def read_records(config: PromptsConfig) -> Iterator[Record]:
    """Yield the records of a source in order, with at most one batch of them in memory.

    Raises:
        ConfigError: The format is unknown.
        InputError: The source cannot be read; the message names the place.
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
