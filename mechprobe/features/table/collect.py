"""Reading a store in order, and the one pass that collects everything the feature table is computed from."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.dictionary.readout import AllReadouts, Readout, model_scale
from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.intervals import ClassEvidence, sequence_groups, sequence_starts
from mechprobe.features.table.norms import present
from mechprobe.features.table.sums import ActiveEntries, FeatureSums
from mechprobe.progress import progress
from mechprobe.ranks import in_turns, sharing
from sae_training import Crosscoder


@runtime_checkable
class RowStore(Protocol):
    """Activations of all models on the same tokens, one row per kept token."""

    models: Any
    n_rows: int
    tokens: Any
    """Its array ``sample`` has the sequence of every row; contexts also need ``token_id`` and ``is_response``.

    A store may have a mask ``dropped`` of rows that describe no feature (`RowSource.dropped`).
    """

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` as ``[row model d_model]``."""
        ...


def kept_rows(store: RowStore, start: int, stop: int) -> Bool[ndarray, " row"]:
    """Which of some consecutive rows the store does not drop."""
    dropped = getattr(store, "dropped", None)
    return np.ones(stop - start, dtype=bool) if dropped is None else ~dropped[start:stop]


def row_batches(
    store: RowStore, config: FeaturesConfig, *, groups: Sequence[range], label: str
) -> Generator[tuple[Int[ndarray, " batch"], Float[Tensor, "batch model d_model"]]]:
    """Yield ``(rows, activations)`` over ranges of rows of a store, with a progress bar.

    No batch spans two ranges. Rows that the store drops are left out, so a batch may be empty.
    """
    options = {} if config.site is None else {"site": config.site}
    with progress(sum(map(len, groups)), label, unit="rows") as advance:
        for rows in groups:
            for start in range(rows.start, rows.stop, config.batch_rows):
                stop = min(start + config.batch_rows, rows.stop)
                kept = kept_rows(store, start, stop)
                x = store.rows(start, stop, **options)
                yield start + np.flatnonzero(kept), x if kept.all() else x[torch.from_numpy(kept)]
                advance(stop - start)


def check_store(crosscoder: Crosscoder, store: RowStore) -> None:
    """Raise `StoreError` where crosscoder and store have different models."""
    if tuple(store.models) != tuple(crosscoder.model_names):
        raise StoreError(
            f"The activation store has the models {', '.join(store.models)}, but the crosscoder has "
            f"{', '.join(crosscoder.model_names)}; give the store that the crosscoder was trained on."
        )


@dataclass
class TopRows:
    """The ``n`` rows of highest activation above zero of every feature, sorted by feature, then by falling activation.

    Of equal activations the earlier row comes first, so the result does not depend on the batches.
    """

    n: int
    feature: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    @classmethod
    def empty(cls, n: int) -> "TopRows":
        """A pool without rows."""
        return cls(n, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    def update(self, active: ActiveEntries, rows: Int[ndarray, " batch"]) -> None:
        """Add the active entries of a batch, which holds these ``rows`` of the store."""
        self._add(active.feature.cpu(), torch.from_numpy(rows)[active.row.cpu()], active.value.float().cpu())

    def merge(self, other: "TopRows") -> "TopRows":
        """The pool over the rows of both."""
        merged = replace(self)
        merged._add(other.feature, other.row, other.value)
        return merged

    def _add(self, feature: Tensor, row: Tensor, value: Tensor) -> None:
        reaches = value >= self._entry_value(int(feature.max()) + 1 if len(feature) else 0)[feature]
        feature, row = torch.cat([self.feature, feature[reaches]]), torch.cat([self.row, row[reaches]])
        value = torch.cat([self.value, value[reaches]])
        key = (feature << 31) - value.view(torch.int32)  # floats above zero are ordered like their bits
        order = torch.argsort(row, stable=True)
        order = order[torch.argsort(key[order], stable=True)]
        feature, row, value = feature[order], row[order], value[order]
        keep = _rank_in_feature(feature) < self.n
        self.feature, self.row, self.value = feature[keep], row[keep], value[keep]

    def _entry_value(self, n_features: int) -> Float[Tensor, " d_sae"]:
        """The activation that a new row must reach, by feature: that of the last row kept, 0 while the pool is not full."""
        n_features = max([n_features, *(self.feature[-1:] + 1).tolist()])
        needed = torch.zeros(n_features)
        last = _rank_in_feature(self.feature) == self.n - 1
        needed[self.feature[last]] = self.value[last]
        return needed

    def of(self, feature: int) -> list[tuple[int, float]]:
        """``(row, activation)`` of one feature, highest first."""
        mask = self.feature == feature
        return list(zip(self.row[mask].tolist(), self.value[mask].tolist(), strict=True))


def _rank_in_feature(feature: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
    """Rank of each entry among those of its feature; the entries must be sorted by feature."""
    counts = torch.bincount(feature)
    starts = torch.cumsum(counts, 0) - counts
    return torch.arange(len(feature)) - starts[feature]


@dataclass(frozen=True)
class Collected:
    """The result of one pass over some rows; ``evidence`` is None where no intervals are wanted."""

    sums: FeatureSums
    top: TopRows
    evidence: ClassEvidence | None

    def merge(self, other: "Collected") -> "Collected":
        """The result over the rows of both. The rows must be disjoint, and no sequence may lie in both."""
        whole = self.evidence is not None and other.evidence is not None
        evidence = self.evidence.merge(other.evidence) if whole else None  # type: ignore[union-attr]
        return Collected(self.sums.merge(other.sums), self.top.merge(other.top), evidence)


def scaled_norms(crosscoder: Crosscoder) -> Float[ndarray, "d_sae model"]:
    """L1 decoder norms with each model's activations divided by its scale, from which `present` decides."""
    return (crosscoder.decoder_norm(1).double() / model_scale(crosscoder).double()).cpu().numpy()


def collect(crosscoder: Crosscoder, store: RowStore, config: FeaturesConfig, *, rows: range | None = None) -> Collected:
    """Read ``rows`` of a store once, in whole sequences; all rows when None.

    Raises:
        StoreError: The store has other models than the crosscoder, or no rows.
    """
    check_store(crosscoder, store)
    rows = range(store.n_rows) if rows is None else rows
    if not len(rows):
        raise StoreError("The activation store has no rows; make it again with `mechprobe cache`.")
    sample = np.asarray(store.tokens.sample)
    groups = sequence_groups(sample, rows, config.bootstrap_groups) if config.bootstrap_draws else [rows]
    lacked = ~present(scaled_norms(crosscoder), config.thresholds.absent_below).all(axis=1)
    claimed = torch.from_numpy(np.flatnonzero(lacked)).to(crosscoder.device)
    whole = FeatureSums.zeros(crosscoder.n_models, crosscoder.d_sae, crosscoder.device)
    top = TopRows.empty(4 * config.n_examples)
    evidence: ClassEvidence | None = None
    encoder = AllReadouts(crosscoder, Readout(config.readout, config.near))
    ranks = sharing()
    batches = row_batches(store, config, groups=groups[ranks.index :: ranks.count], label="features")

    def sums_of(group: range) -> FeatureSums:
        sums = FeatureSums.zeros(crosscoder.n_models, crosscoder.d_sae, crosscoder.device)
        for _ in range(group.start, group.stop, config.batch_rows):
            numbers, x = next(batches)
            if len(x):
                top.update(sums.update(encoder, x.to(crosscoder.device)), numbers)
        return sums

    for group, sums in zip(groups, in_turns(sums_of, groups, device=crosscoder.device), strict=True):
        whole = whole.merge(sums)
        if config.bootstrap_draws:
            part = ClassEvidence.of(sums, claimed, len(sequence_starts(sample, group)))
            evidence = part if evidence is None else evidence.merge(part)
    next(batches, None)  # counts the last batch, and ends the progress as done
    first, *others = ranks.gather(top)
    return Collected(whole, reduce(TopRows.merge, others, first), evidence)
