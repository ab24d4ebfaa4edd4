"""Prompts of any source as one sequence. All prompts are checked, but only those in use are kept in memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import cast, overload

import numpy as np

from mechprobe.data.config import HUB, PromptsConfig
from mechprobe.data.fields import to_prompt
from mechprobe.data.prompts import Prompt, PromptsHash, prompts_hash
from mechprobe.data.readers import read_records
from mechprobe.errors import InputError
from mechprobe.json_fields import check_unicode, printable_name

PromptInput = PromptsConfig | Path | str | Iterable[Prompt | str]
"""Accepted forms of prompts: the settings of a source, a path or ``hub:NAME``, or prompts or texts in memory."""

_FIRST_CHUNK = 4096
"""Number of prompts in the first fetch if it is unknown how many will be needed."""


class SourcePrompts(Sequence[Prompt]):
    """Prompts of a file or dataset, which is read again on each access.

    The constructor reads the whole source and checks, counts and hashes every record. During this check, it keeps eight
    bytes per record in memory: a hash of the id, to find duplicates.

    Attributes:
        config: Settings of the source.
        hash: `prompts_hash` of all prompts.
    """

    def __init__(self, config: PromptsConfig) -> None:
        """Check the whole source.

        Raises:
            ConfigError: The format is unknown.
            InputError: The source or one of its records is unusable, or an id is not unique; the message names the place.
        """
        self.config = config
        config.detected()
        path = Path(config.file)
        if not config.file.startswith(HUB) and path.exists() and not path.is_file() and not path.is_dir():
            # A resumed run reads its prompts again, and a pipe can be read only once.
            raise InputError(f"{path} is a pipe or device, not a file; save the prompts to a file first.")
        ids, digest, seen = array("Q"), PromptsHash(), set[str]()
        renamed = config.renamed()
        for record in read_records(config):
            prompt = to_prompt(record, config)
            digest.add(prompt)
            ids.append(int.from_bytes(blake2b(prompt.id.encode(), digest_size=8).digest(), "little"))
            seen.update(column for column in renamed.values() if column in record.fields)
        if not ids:
            raise InputError(f"{config.file} contains no prompts; {_EMPTY[config.detected()]}.")
        for name, column in renamed.items():
            if column not in seen:
                raise InputError(f"No record of {config.file} has a field '{column}'; correct prompts.{name}_field.")
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
                raise InputError(f"{prompt.where}: id {prompt.id!r} is already used in {place}; make ids unique.")
            first[prompt.id] = prompt

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Prompt]:
        """Iterate over all prompts.

        Raises:
            InputError: The source has changed since the check.
        """
        digest = PromptsHash()
        for record in read_records(self.config):
            prompt = to_prompt(record, self.config)
            digest.add(prompt)
            yield prompt
        if digest.hexdigest() != self.hash:
            raise InputError(f"{self.config.file} has changed while it was in use; run the command again.")

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        """Return one prompt or a list of prompts, in one pass over the source."""
        if isinstance(index, slice):
            return self.take(range(self._n)[index])
        return self.take([range(self._n)[index]])[0]

    def take(self, indices: Sequence[int]) -> list[Prompt]:
        """Return the prompts at ``indices``, in that order, in one pass over the source."""
        places = {int(index): place for place, index in enumerate(indices)}
        found: list[Prompt | None] = [None] * len(indices)
        for number, prompt in enumerate(self):
            if number in places:
                found[places[number]] = prompt
        return [prompt for prompt in found if prompt is not None]


_EMPTY = {
    "jsonl": 'write one JSON object per line, such as {"prompt": "..."}',
    "text": "write one document per line",
    "paragraphs": "write documents with blank lines between them",
    "parquet": "add at least one row",
    "dataset": "add at least one row",
}


def as_prompts(prompts: PromptInput) -> Sequence[Prompt]:
    """Return the prompts of a source, or prompts in memory; the id of a text is its index in the list.

    Raises:
        ConfigError: The format of a file is unknown.
        InputError: There are no prompts, a prompt is empty or unusable, or an id is not unique.
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
        if not item.prompt.strip() and not item.messages:
            raise InputError(f"{item} is empty; fill it in or remove it.")
        check_unicode({"id": item.id, "task": item.task}, "Prompts")
        check_unicode({name: getattr(item, name) for name in ("prompt", "response", "messages", "reply")}, str(item))
        for name, text in (("id", item.id), ("task", item.task or "")):
            printable_name(text, name, "Prompts")
        if item.id in seen:
            raise InputError(f"Prompt id {item.id!r} is used twice; make ids unique.")
        seen.add(item.id)
    return items


def hash_of(prompts: Sequence[Prompt]) -> str:
    """`prompts_hash` of prompts; a source computed it when it was checked."""
    return prompts.hash if isinstance(prompts, SourcePrompts) else prompts_hash(prompts)


def in_order(prompts: Sequence[Prompt], order: Sequence[int], *, all_needed: bool) -> Iterator[tuple[int, Prompt]]:
    """Yield ``(index, prompt)`` in the given order.

    If all prompts are needed, those of a source are fetched in one pass. Otherwise they are fetched in chunks of increasing
    size, so that memory is proportional to what is used.
    """
    if not isinstance(prompts, SourcePrompts):
        yield from ((int(index), prompts[int(index)]) for index in order)
        return
    start, size = 0, len(order) if all_needed else _FIRST_CHUNK
    while start < len(order):
        chunk = [int(index) for index in order[start : start + size]]
        yield from zip(chunk, prompts.take(chunk), strict=True)
        start, size = start + size, 2 * size
