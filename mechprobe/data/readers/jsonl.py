"""JSON lines: one object per line."""

from collections.abc import Iterator
from pathlib import Path

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record
from mechprobe.records import read_jsonl


def records(config: PromptsConfig) -> Iterator[Record]:
    """Yield every object of the file, numbered by its line."""
    path = Path(config.file)
    for number, item in read_jsonl(path):
        yield Record(f"{path}:{number}", number, item)
