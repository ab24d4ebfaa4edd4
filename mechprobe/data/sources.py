"""Prompts of any source as one sequence: checked whole, kept in memory only as far as they are taken."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import cast, overload

import numpy as np

from mechprobe.data.config import HUB, PromptsConfig
from mechprobe.data.fields import encodable, to_prompt
from mechprobe.data.prompts import Prompt, PromptsHash, prompts_hash
from mechprobe.data.readers import read_records
from mechprobe.errors import InputError

PromptInput = PromptsConfig | Path | str | Iterable[Prompt | str]
"""What prompts are given as: a source, its path or ``hub:NAME``, or prompts or texts in memory."""

_FIRST_CHUNK = 4096
"""Prompts that are fetched at first when nobody knows how many will be needed."""


class SourcePrompts(Sequence[Prompt]):
    """Prompts of a file or dataset, read again whenever some are taken.

    Making it reads the source once from end to end: every record is checked, counted and hashed. In memory stay eight
    bytes a record (a hash of its id, to find ids that come twice), and only until the check is done.

    Attributes:
        config: The source.
        hash: `prompts_hash` of all of them.
    """

    def __init__(self, config: PromptsConfig) -> None:
        """Check the whole source.

        Raises:
            ConfigError: The format cannot be told.
            InputError: The source or a record of it cannot be used, or an id comes twice; the text says where.
        """
        self.config = config
        _require_rereadable(config)
        ids, digest, seen = array("Q"), PromptsHash(), set[str]()
        renamed = config.renamed()
        for record in read_records(config):
            prompt = to_prompt(record, config)
            digest.add(prompt)
            ids.append(int.from_bytes(blake2b(prompt.id.encode(), digest_size=8).digest(), "little"))
            seen.update(column for column in renamed.values() if column in record.fields)
        if not ids:
            raise InputError(f"{config.file} holds no prompts; {_EMPTY[config.detected()]}.")
        for name, column in renamed.items():
            if column not in seen:
                raise InputError(f"{config.file} has no field '{column}' in any record; set prompts.{name}_field.")
        self._n, self.hash = len(ids), digest.hexdigest()
        self._require_unique(np.frombuffer(ids, dtype=np.uint64))

    def _require_unique(self, ids: np.ndarray) -> None:
        values, counts = np.unique(ids, return_counts=True)
        suspects = set(values[counts > 1].tolist())
        first: dict[str, Prompt] = {}
        for number, prompt in enumerate(self if suspects else ()):
            if int(ids[number]) not in suspects:
                continue
            if prompt.id in first:
                place = first[prompt.id].where.rpartition(":")[2].strip()
                place = f"line {place}" if place.isdigit() else place
                raise InputError(f"{prompt.where}: id {prompt.id!r} is that of {place} too; make ids unique.")
            first[prompt.id] = prompt

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Prompt]:
        """All, from first to last.

        Raises:
            InputError: The source is no longer what was checked.
        """
        digest = PromptsHash()
        for record in read_records(self.config):
            prompt = to_prompt(record, self.config)
            digest.add(prompt)
            yield prompt
        if digest.hexdigest() != self.hash:
            raise InputError(f"{self.config.file} was changed while it was read; run the command again.")

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        """One prompt, or some, for one pass over the source."""
        if isinstance(index, slice):
            return self.take(range(self._n)[index])
        return self.take([range(self._n)[index]])[0]

    def take(self, indices: Sequence[int]) -> list[Prompt]:
        """The prompts at ``indices``, in that order, for one pass over the source."""
        places = {int(index): place for place, index in enumerate(indices)}
        found: list[Prompt | None] = [None] * len(indices)
        for number, prompt in enumerate(self):
            if number in places:
                found[places[number]] = prompt
        return [prompt for prompt in found if prompt is not None]


_EMPTY = {
    "jsonl": 'write one JSON object a line, {"prompt": "..."}',
    "text": "write one document a line",
    "paragraphs": "write documents with blank lines between them",
    "parquet": "it needs at least one row",
    "dataset": "it needs at least one row",
}


def _require_rereadable(config: PromptsConfig) -> None:
    """A pipe can be read once only, and a resumed run must find its prompts again."""
    config.detected()
    path = Path(config.file)
    if not config.file.startswith(HUB) and path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is no file but a pipe or device; save the prompts to a file first.")


def as_prompts(prompts: PromptInput) -> Sequence[Prompt]:
    """Prompts of a source, or those given in memory (a text's id is its place in the list).

    Raises:
        ConfigError: The format of a file cannot be told.
        InputError: There is no prompt, one is empty or cannot be used, or an id comes twice.
    """
    if isinstance(prompts, PromptsConfig):
        return SourcePrompts(prompts)
    if isinstance(prompts, str | Path):
        return SourcePrompts(PromptsConfig(file=str(prompts)))
    numbered = enumerate(cast("Iterable[Prompt | str]", prompts))
    items = [Prompt(id=str(index), prompt=item) if isinstance(item, str) else item for index, item in numbered]
    if not items:
        raise InputError("The list of prompts is empty; give at least one.")
    seen: set[str] = set()
    for item in items:
        if not item.prompt.strip():
            raise InputError(f"{item} is empty; fill it in or drop it.")
        if not encodable(item.prompt + (item.response or "")):
            raise InputError(f"{item} has half a surrogate pair, which is no character; mend it.")
        if item.id in seen:
            raise InputError(f"Prompt id {item.id!r} comes twice; make ids unique.")
        seen.add(item.id)
    return items


def hash_of(prompts: Sequence[Prompt]) -> str:
    """`prompts_hash`; of a source the one that was taken when it was checked."""
    return prompts.hash if isinstance(prompts, SourcePrompts) else prompts_hash(prompts)


def in_order(prompts: Sequence[Prompt], order: Sequence[int], *, all_needed: bool) -> Iterator[tuple[int, Prompt]]:
    """``(index, prompt)`` in the given order.

    Of a source, all are fetched in one pass when all are needed; otherwise a few and then ever more of them, so that
    what is in memory stays in proportion to what is used.
    """
    if not isinstance(prompts, SourcePrompts):
        yield from ((int(index), prompts[int(index)]) for index in order)
        return
    start, size = 0, len(order) if all_needed else _FIRST_CHUNK
    while start < len(order):
        chunk = [int(index) for index in order[start : start + size]]
        yield from zip(chunk, prompts.take(chunk), strict=True)
        start, size = start + size, 2 * size
