"""Norms of the rows of a store: their quantiles, rows of enormous norm, and the rule by norm that drops such rows.

Norms are computed from the stored rows while a shard is in memory, and are kept in a file beside it until the store is
finished. Then the medians over all rows are known, and with them the far rows (`sae_training.weights.FAR`), which
attention sinks and massive activations (arXiv 2402.17762) make.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.disk import reading_hdf5, write_hdf5
from mechprobe.cache.store.dtypes import from_stored
from mechprobe.data.stream import TokenStream
from mechprobe.results import Result
from sae_training.weights import FAR, far_norm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASSIVE = 100.0
"""A dimension is massive where its largest |value| exceeds this multiple of the rms of a row of median norm (ours)."""
DROPPED = "dropped.h5"
"""Rows that the rule by norm drops; only where the rule is set."""
_LARGEST = ".largest"
_CHUNK = 4096
_LEADING = 4
"""Rows at the start of a sequence among which far rows count as far first positions."""
_MOSTLY = 0.95
_SHOWN = 5


class SiteNorms(Result):
    """L2 norms of all rows of one model at one site, and its massive dimensions.

    Attributes:
        median: Median, the lower one of an even number of rows.
        q99: 99 % quantile.
        largest: Largest norm.
        n_far: Rows of more than `FAR` times the median.
        n_massive: Massive dimensions.
        massive: Index and ratio (largest |value| over the rms of a row of median norm) of the largest of them.
        ordinary: For each shard, the sum of the norms of the training rows that are neither far nor dropped, and their
            number; empty where every row is ordinary.
    """

    median: float
    q99: float
    largest: float
    n_far: int
    n_massive: int
    massive: tuple[tuple[int, float], ...]
    ordinary: tuple[tuple[float, int], ...] = ()


class FarRows(Result):
    """The rows that are far in any model at any site.

    Attributes:
        n_rows: Their number.
        first_positions: Number of leading positions that holds nearly all of them; None where they are scattered.
        tokens: Text and number of rows of the most frequent of their tokens.
        n_dropped: Rows that the rule by norm drops.
    """

    n_rows: int
    first_positions: int | None
    tokens: tuple[tuple[str, int], ...]
    n_dropped: int = 0


class StoreNorms(Result):
    """The norms of a store, by model and site."""

    models: dict[str, dict[str, SiteNorms]]
    far: FarRows


StoredRows = Callable[[str, str, int], ndarray]
"""Stored rows ``[row row_width]`` of (model, site, shard)."""


@dataclass(frozen=True)
class ShardNorms:
    """Per site, the norm of every row of a shard and the largest |value| of every dimension."""

    norms: dict[str, Float[ndarray, " row"]]
    largest: dict[str, Float[ndarray, " d_model"]]

    @classmethod
    def of(cls, arrays: Mapping[str, ndarray], dtype: StoreDtype) -> "ShardNorms":
        """The norms, in float64, of stored rows ``[row row_width]``."""
        found = {site: _measured(array, dtype) for site, array in arrays.items()}
        norms = {site: norm for site, (norm, _) in found.items()}
        return cls(norms, {site: largest for site, (_, largest) in found.items()})

    def training_sums(self, training: Bool[ndarray, " row"]) -> tuple[dict[str, float], int]:
        """Per site the sum of the norms of the training rows; and the number of training rows."""
        chosen = torch.from_numpy(training)
        return {site: float(torch.from_numpy(norm)[chosen].sum()) for site, norm in self.norms.items()}, int(
            training.sum()
        )

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        write_hdf5(path, {**self.norms, **{site + _LARGEST: array for site, array in self.largest.items()}}, {})


def norms_file(index: int) -> str:
    """Name of the file beside a shard, which is removed when the store is finished."""
    return f"norms_{index:05d}.h5"


def _measured(array: ndarray, dtype: StoreDtype) -> tuple[ndarray, ndarray]:
    norms, largest = np.empty(len(array)), None
    for start in range(0, len(array), _CHUNK):
        values = from_stored(np.array(array[start : start + _CHUNK]), dtype)
        norms[start : start + _CHUNK] = torch.linalg.vector_norm(values.double(), dim=1).numpy()
        most = values.abs().amax(dim=0).float().numpy()
        largest = most if largest is None else np.maximum(largest, most)
    assert largest is not None, "a shard has at least one row"
    return norms, largest


@dataclass(frozen=True)
class NormFiles:
    """The norms of all shards of a store that is being finished.

    Attributes:
        folder: Folder of the store.
        widths: Model name to d_model.
        sites: Names of the sites.
        stream: The token stream.
        stored: Returns the stored rows of ``(model, site, shard)``, where a norms file is missing.
    """

    folder: Path
    widths: dict[str, int]
    sites: tuple[str, ...]
    stream: TokenStream
    dtype: StoreDtype
    stored: StoredRows

    def measure(
        self, tokenizer: "PreTrainedTokenizerBase", drop_norm_above: float | None
    ) -> tuple[StoreNorms, Bool[ndarray, " row"]]:
        """Quantiles and far rows of every model and site, and the rows that the rule drops in all of them."""
        far, dropped = np.zeros((2, self.stream.n_rows), dtype=bool)
        found: dict[str, dict[str, SiteNorms]] = {name: {} for name in self.widths}
        for name, site in self._places():
            norms, largest = self._read(name, site)
            found[name][site] = _summary(norms, largest)
            far |= norms > norm_limit(found[name][site], FAR)
            if drop_norm_above is not None:
                dropped |= norms > norm_limit(found[name][site], drop_norm_above)
        for name, site in self._places() if far.any() or dropped.any() else ():
            if dropped.any() or found[name][site].n_far:
                ordinary = self._ordinary(self._read(name, site)[0], found[name][site], dropped)
                found[name][site] = found[name][site].model_copy(update={"ordinary": ordinary})
        return StoreNorms(models=found, far=_far_rows(self.stream, far, dropped, tokenizer)), dropped

    def remove(self) -> None:
        """Remove the files; `measure` then reads the shards."""
        for name in self.widths:
            for path in (self.folder / name).glob("norms_*.h5"):
                path.unlink(missing_ok=True)

    def _places(self) -> Iterator[tuple[str, str]]:
        return ((name, site) for name in self.widths for site in self.sites)

    def _read(self, model: str, site: str) -> tuple[Float[ndarray, " row"], Float[ndarray, " d_model"]]:
        norms, largest = np.empty(self.stream.n_rows), np.zeros(self.widths[model], dtype=np.float32)
        for shard in self.stream.shards:
            path = self.folder / model / norms_file(shard.index)
            if path.is_file():
                with reading_hdf5(path) as file:
                    part, most = np.asarray(file[site]), np.asarray(file[site + _LARGEST])
            else:  # a finished store gets more models, or the files were already removed
                part, most = _measured(self.stored(model, site, shard.index), self.dtype)
            norms[shard.rows.start : shard.rows.stop] = part
            largest = np.maximum(largest, most)
        return norms, largest

    def _ordinary(self, norms: ndarray, found: SiteNorms, dropped: ndarray) -> tuple[tuple[float, int], ...]:
        used = ~dropped & ~self.stream.rows.held_out & (norms <= norm_limit(found, FAR))
        rows = [slice(shard.rows.start, shard.rows.stop) for shard in self.stream.shards]
        return tuple((float(norms[part][used[part]].sum()), int(used[part].sum())) for part in rows)


def norm_limit(norms: SiteNorms, times_median: float) -> float:
    """``times_median`` times the median; infinity where the median is 0."""
    return times_median * norms.median if norms.median > 0 else np.inf


def _summary(norms: Float[ndarray, " row"], largest: Float[ndarray, " d_model"]) -> SiteNorms:
    median = float(torch.from_numpy(norms).median())
    ratio = largest / max(median / len(largest) ** 0.5, np.finfo(np.float32).tiny)
    massive = np.flatnonzero(ratio > MASSIVE)
    first = massive[np.argsort(-ratio[massive], kind="stable")][:_SHOWN]
    return SiteNorms(
        median=median,
        q99=float(np.quantile(norms, 0.99)),
        largest=float(norms.max()),
        n_far=int((norms > far_norm(torch.from_numpy(norms))).sum()),
        n_massive=len(massive),
        massive=tuple((int(index), round(float(ratio[index]), 1)) for index in first),
    )


def _far_rows(
    stream: TokenStream,
    far: Bool[ndarray, " row"],
    dropped: Bool[ndarray, " row"],
    tokenizer: "PreTrainedTokenizerBase",
) -> FarRows:
    rows = np.flatnonzero(far)
    leading = rows[rows - stream.row_start[stream.rows.sample[rows]] < _LEADING]
    mostly = len(rows) > 0 and len(leading) >= _MOSTLY * len(rows)
    ids, counts = np.unique(stream.rows.token_id[rows], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_SHOWN]
    return FarRows(
        n_rows=len(rows),
        first_positions=int(stream.rows.position[leading].max()) + 1 if mostly else None,
        tokens=tuple((str(tokenizer.decode([int(ids[index])])), int(counts[index])) for index in most),
        n_dropped=int(dropped.sum()),
    )
