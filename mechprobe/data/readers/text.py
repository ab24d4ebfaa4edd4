"""Plain text in UTF-8: each line is a document, or documents are separated by blank lines."""

from collections.abc import Iterator
from pathlib import Path

from mechprobe.data.config import PromptsConfig
from mechprobe.data.readers.record import Record
from mechprobe.errors import InputError
from mechprobe.records import MAX_LINE_CHARS, read_lines


def lines(config: PromptsConfig) -> Iterator[Record]:
    """Yield every line that is not blank, unchanged but without its line end."""
    path = Path(config.file)
    for number, line in read_lines(path, kind="text file"):
        yield Record(f"{path}:{number}", number, {config.prompt_field: line})


def paragraphs(config: PromptsConfig) -> Iterator[Record]:
    r"""Yield every group of consecutive lines that are not blank, joined by ``\n`` and numbered by its first line.

    Raises:
        InputError: A document is longer than `MAX_LINE_CHARS` characters.
    """
    path = Path(config.file)
    first, last, held, size = 0, 0, list[str](), 0
    for number, line in read_lines(path, kind="text file"):
        if held and number != last + 1:
            yield _document(config, path, first, held)
            held, size = [], 0
        first = first if held else number
        last = number
        held.append(line)
        size += len(line) + 1
        if size > MAX_LINE_CHARS:
            raise InputError(f"{path}:{first}: more than {MAX_LINE_CHARS:,} characters without a blank line; split it.")
    if held:
        yield _document(config, path, first, held)


def _document(config: PromptsConfig, path: Path, first: int, held: list[str]) -> Record:
    return Record(f"{path}:{first}", first, {config.prompt_field: "\n".join(held)})
