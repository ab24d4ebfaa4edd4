"""One pass of every model over the texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.drift.divergence.distances import PositionDivergences, hidden_divergences
from mechprobe.drift.divergence.lens import Texts, first_residuals, lens_rows
from mechprobe.drift.divergence.parts import LAYER, Batch, PartFiles, SampledPositions
from mechprobe.drift.divergence.sums import CellSums, TokenCounts, arrays_of
from mechprobe.drift.divergence.texts import DriftTexts, token_classes
from mechprobe.errors import ModelError
from mechprobe.files import write_json
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import not_finite
from mechprobe.models.head import ModelHead
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, progress
from mechprobe.ranks import sharing
from mechprobe.types import Site

R = TypeVar("R")
Kept = dict[int, Tensor]
"""Final hidden states of base ``[token width]`` by batch of a window, padding left out, on the CPU; those of this process."""
_Compared = tuple[list[CellSums], dict[str, TokenCounts], list[Tensor]]
"""Cells and tokens of a batch, and its sampled residuals by layer."""


@dataclass
class Measurement:
    """The models, the texts, and the folder of the parts.

    Attributes:
        windows: Forward batches, see `mechprobe.drift.divergence.parts`.
        n_ids: Number of ids that are compared.
        lens: Unrelated texts; empty where there is no lens.
        sampled: Positions at which residuals are compared.
    """

    family: ModelFamily
    texts: DriftTexts
    config: DriftConfig
    files: PartFiles
    windows: list[tuple[Batch, ...]]
    n_ids: int
    lens: Texts
    sampled: SampledPositions = field(init=False)
    _base_lens: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.sampled = SampledPositions.of(self.texts, self.config.positions, self.config.seed)

    @cached_property
    def classes(self) -> Int[ndarray, " id"]:
        """Class of every id."""
        return token_classes(self.family.tokenizer, self.n_ids, self.config)

    @property
    def sites(self) -> list[Site]:
        """All sites."""
        return self.family.sites()

    def readers(self, window: int) -> list[str]:
        """The tuned models that run some batch of a window, in the order of the family."""
        names = {name for batch in self.windows[window] for name in batch.readers}
        return [name for name in self.texts.models if name in names]

    def run(self) -> None:
        """Make every part that is missing, one window after another.

        The processes of a launcher divide the batches of a window; the first one writes the parts.
        """
        with progress(self.n_tokens, "divergence", unit="tokens") as advance:
            for window, (base_due, todo) in enumerate(sharing().gather(self._missing())[0]):
                advance.found(self._window_tokens(window, [n for n in self.readers(window) if n not in todo]))
                if not base_due:
                    advance.found(self._window_tokens(window, [self.texts.base]))
                    continue
                base, kept = self._run_base(window, advance)
                for name in todo:
                    self._run_model(window, name, base, kept, advance)
        self.family.release()

    def _missing(self) -> list[tuple[bool, list[str]]]:
        """For every window, whether base runs over it, and the tuned models whose parts are missing."""
        found: list[tuple[bool, list[str]]] = []
        for window in range(len(self.windows)):
            todo = [name for name in self.readers(window) if not self._done(window, name)]
            found.append((bool(todo) or not self.files.path(window, self.texts.base).is_file(), todo))
        return found

    @property
    def n_tokens(self) -> int:
        """Tokens that all models together run on, padding not counted."""
        return sum(
            self._window_tokens(window, [self.texts.base, *self.readers(window)]) for window in range(len(self.windows))
        )

    def _window_tokens(self, window: int, names: Sequence[str]) -> int:
        return sum(
            batch.n_tokens(self.texts) * sum(name == self.texts.base or name in batch.readers for name in names)
            for batch in self.windows[window]
        )

    def _done(self, window: int, name: str) -> bool:
        return self.files.path(window, name).is_file() and not self._lens_due(window, name)

    def _lens_due(self, window: int, name: str) -> bool:
        """Whether the lens of a model is to be made in this window: in its first one, unless it is there."""
        first = next(number for number in range(len(self.windows)) if name in self.readers(number))
        return bool(self.lens) and window == first and not self.files.path("lens", name).is_file()

    def _run_base(self, window: int, advance: Advance) -> tuple[ModelHead, Kept]:
        head = ModelHead(self.family[self.texts.base])
        kept: Kept = {}

        def read(number: int) -> list[Tensor]:
            hidden, sampled = self._forward(head, self.windows[window][number])
            kept[number] = hidden.cpu()
            return sampled

        numbers = range(len(self.windows[window]))
        rows = list(self._divided(read, window, numbers, self.texts.base, advance))
        if sharing().is_first:
            self.files.write(window, self.texts.base, self._layers(rows))
        return head, kept

    def _run_model(self, window: int, name: str, base: ModelHead, kept: Kept, advance: Advance) -> None:
        model = self.family[name]
        head = ModelHead(model)
        cells: list[CellSums] = []
        tokens: dict[str, list[TokenCounts]] = {}
        rows: list[list[Tensor]] = []

        def compare(number: int) -> _Compared:
            batch = self.windows[window][number]
            hidden, sampled = self._forward(head, batch)
            return (*self._compare(head, base, batch, (hidden, kept[number])), sampled)

        numbers = [number for number, batch in enumerate(self.windows[window]) if name in batch.readers]
        for own_cells, own_tokens, sampled in self._divided(compare, window, numbers, name, advance):
            cells += own_cells
            for source, part in own_tokens.items():
                tokens.setdefault(source, []).append(part)
            rows.append(sampled)
        if sharing().is_first:
            joined = {source: TokenCounts.joined(parts) for source, parts in sorted(tokens.items())}
            self.files.write(window, name, {**arrays_of(CellSums.joined(cells), joined), **self._layers(rows)})
            if self._lens_due(window, name):
                self._write_lens(head, base.model)
        model.release()

    def _divided(
        self, work: Callable[[int], R], window: int, numbers: Sequence[int], model: str, advance: Advance
    ) -> Iterator[R]:
        """Results of ``work`` on batches of a window, by number, each from the process that also keeps base's states of it."""
        ranks = sharing()
        found: dict[int, R] = {}
        for number in numbers:
            if ranks.owns(number):
                found[number] = work(number)
            advance(self.windows[window][number].n_tokens(self.texts), model=model)
        together: dict[int, R] = {}
        for of_rank in ranks.gather(found):
            together |= of_rank
        return (together[number] for number in numbers)

    def _forward(self, head: ModelHead, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Final hidden states of the tokens of a batch ``[token width]``, and the sampled residuals of each layer."""
        ids, mask = batch.inputs(self.texts, head.model.pad_id)
        taken = torch.from_numpy(self.sampled.mask(batch, (ids.shape[0], ids.shape[1])))
        shared = batch.readers == self.texts.models
        hidden, resid = head.hidden(ids, mask, self.sites if bool(taken.any()) else ())
        rows = [resid[site][taken.to(resid[site].device)].float().cpu() for site in self.sites] if resid else []
        if shared and not rows:
            rows = [torch.zeros(0, head.model.d_model) for _ in self.sites]
        return hidden[mask.bool().to(hidden.device)], rows

    @staticmethod
    def _layers(rows: list[list[Tensor]]) -> dict[str, ndarray]:
        found = [part for part in rows if part]
        if not found:
            return {}
        return {f"{LAYER}{layer:04d}": torch.cat(parts).numpy() for layer, parts in enumerate(zip(*found, strict=True))}

    def _compare(
        self, head: ModelHead, base: ModelHead, batch: Batch, hidden: tuple[Tensor, Tensor]
    ) -> tuple[list[CellSums], dict[str, TokenCounts]]:
        """Divergences of the counted predictions of a batch, in cells, and its tokens by source; nothing where there is none."""
        name, picked = head.model.name, _Picked.of(self.texts, head.model.name, batch)
        if not len(picked.place):
            return [], {}
        place = torch.from_numpy(picked.place)
        found = hidden_divergences(
            head,
            base,
            hidden[0][place.to(hidden[0].device)],
            hidden[1][place],
            torch.from_numpy(picked.target),
            n_ids=self.n_ids,
            top=self.config.top,
        )
        self._require_finite(found, name, picked)
        tokens: dict[str, TokenCounts] = {}
        for source in np.unique(picked.source):
            chosen = picked.source == source
            tokens[str(source)] = TokenCounts.of(found.only(torch.from_numpy(chosen)), picked.target[chosen])
        return [CellSums.of(found, picked.sequence, self.classes[picked.target], picked.bucket)], tokens

    def _require_finite(self, found: PositionDivergences, name: str, picked: "_Picked") -> None:
        wrong = found.not_finite()
        if wrong is not None:
            model = self.texts.base if wrong[0] else name
            sequence = self.texts.stream.sequences[int(picked.sequence[wrong[1]])].id
            error = str(not_finite(model, self.family[model].hf.dtype)).rstrip(".")
            raise ModelError(f"{error} (sequence {sequence!r}).")

    def _write_lens(self, head: ModelHead, base_model: LanguageModel) -> None:
        if self._base_lens is None:
            self._base_lens = first_residuals(base_model, self.lens, self.config.batch_tokens)
        base = self._base_lens
        try:
            tuned = first_residuals(head.model, self.lens, self.config.batch_tokens)
            if tuned.shape != base.shape:
                raise ModelError(
                    f"Model {head.model.name} has another width than {self.texts.base}, so it has no lens."
                )
            rows = lens_rows(head.model, tuned, base, self.family.tokenizer, self.config.top)
            value: dict[str, object] = {"rows": [row.to_dict() for row in rows], "missing": ""}
        except ModelError as error:
            value = {"rows": [], "missing": str(error).replace("set features.n_promoted=0", "it has no lens")}
        write_json(self.files.path("lens", head.model.name), value)


@dataclass(frozen=True)
class _Picked:
    """The counted predictions of a batch for one model.

    Attributes:
        place: Index of the predicting position among the tokens of the batch, padding left out.
        target: The token that follows.
        sequence, bucket: Its sequence and bucket.
        source: ``prompt``, or the source and temperature of the sequence (`DriftTexts.label`).
    """

    place: Int[ndarray, " prediction"]
    target: Int[ndarray, " prediction"]
    sequence: Int[ndarray, " prediction"]
    bucket: Int[ndarray, " prediction"]
    source: ndarray

    @classmethod
    def of(cls, texts: DriftTexts, name: str, batch: Batch) -> "_Picked":
        columns: list[list[ndarray]] = [[], [], [], [], []]
        start = 0
        for index in batch.sequences:
            ids = np.asarray(texts.stream.sequences[index].ids, dtype=np.int64)
            chosen = np.flatnonzero(texts.counted(name, index))
            bucket = texts.buckets[index][chosen]
            parts = (
                start + chosen,
                ids[1:][chosen],
                np.full(len(chosen), index),
                bucket,
                np.where(bucket == 0, "prompt", texts.label(index)),
            )
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
            start += len(ids)
        return cls(*(np.concatenate(column) for column in columns))
