"""Contexts of every live feature: which rows they are around, and the activations there, in one pass over the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.dictionary.readout import AllReadouts, Readout
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.contexts.files import GROUP_FEATURES, TOP, ContextGroup
from mechprobe.features.examples.promoted import token_text
from mechprobe.features.examples.quantiles import collect_random_rows
from mechprobe.features.table.collect import RowStore, TopRows, kept_rows
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.table.intervals import sequence_starts
from mechprobe.progress import progress
from sae_training import Crosscoder

POOL_ROWS = 128
"""Random rows kept per feature. The edge of a quantile has a standard error of at most 4.4 % of the active rows."""


@dataclass(frozen=True)
class _Wanted:
    """Contexts before their tokens are read; the arrays are as in `ContextGroup`, and ``start`` is the first row."""

    feature: Int[ndarray, " context"]
    part: Int[ndarray, " context"]
    ranges: Float[ndarray, "context 4"]
    row: Int[ndarray, " context"]
    start: Int[ndarray, " context"]
    offset: Int[ndarray, " context_and_end"]

    @property
    def token_rows(self) -> Int[ndarray, " token"]:
        """The row of every token."""
        length = np.diff(self.offset)
        return np.repeat(self.start - self.offset[:-1], length) + np.arange(self.offset[-1])

    @property
    def token_features(self) -> Int[ndarray, " token"]:
        """The feature whose context a token is in."""
        return np.repeat(self.feature, np.diff(self.offset))


def all_contexts(
    crosscoder: Crosscoder, store: RowStore, tokenizer: Any, table: FeatureTable, config: FeaturesConfig
) -> Iterator[ContextGroup]:
    """Top and random contexts of every live feature, `GROUP_FEATURES` features at a time.

    They are chosen as those of `mechprobe.feature_examples`, but from `POOL_ROWS` random rows.
    """
    features = np.flatnonzero(~table.dead)
    wanted = _wanted(crosscoder, store, table, features, config)
    by_name = _activations(crosscoder, store, wanted, config)

    @cache
    def text(token: int) -> str:
        return token_text(tokenizer, token)

    rows, tokens = wanted.token_rows, store.tokens
    for part in _groups(wanted.feature, features):
        span = slice(wanted.offset[part.start], wanted.offset[part.stop])
        different, index = np.unique(np.asarray(tokens.token_id)[rows[span]], return_inverse=True)
        low, high, smallest, largest = wanted.ranges[part].T
        yield ContextGroup(
            wanted.feature[part], wanted.part[part], low, high, smallest, largest,
            sample=np.asarray(tokens.sample)[wanted.row[part]],
            row=wanted.row[part],
            peak=wanted.row[part] - wanted.start[part],
            offset=wanted.offset[part.start : part.stop + 1] - wanted.offset[part.start],
            strings=[text(int(token)) for token in different],
            token=index,
            is_response=np.asarray(tokens.is_response)[rows[span]].astype(bool),
            acts={name: values[span] for name, values in by_name.items()},
        )  # fmt: skip


def _groups(feature: Int[ndarray, " context"], features: Int[ndarray, " live"]) -> Iterator[slice]:
    """The contexts of every `GROUP_FEATURES` live features."""
    for first in range(0, len(features), GROUP_FEATURES):
        chosen = features[first : first + GROUP_FEATURES]
        start, stop = np.searchsorted(feature, (chosen[0], chosen[-1] + 1))
        yield slice(int(start), int(stop))


def _wanted(
    crosscoder: Crosscoder,
    store: RowStore,
    table: FeatureTable,
    features: Int[ndarray, " live"],
    config: FeaturesConfig,
) -> _Wanted:
    spans = _Spans.of(store, config)
    top, n = _by_feature(table.top_rows, features), config.n_per_quantile
    drawn = None
    if config.n_quantiles and len(features):
        drawn = collect_random_rows(crosscoder, store, features.tolist(), config, size=POOL_ROWS)
    found: list[tuple[int, int, float, float, float, float, int]] = []
    for place, feature in enumerate(features.tolist()):
        nan = float("nan")
        found += [(feature, TOP, nan, nan, nan, nan, row) for row in spans.distinct(top[place], config.n_examples)]
        for number, part in enumerate(drawn.quantiles(feature, config.n_quantiles) if drawn else ()):
            about = (feature, number, part.low, part.high, part.smallest, part.largest)
            found += [(*about, row) for row in spans.distinct(part.rows, n)]
    columns = [np.array(column) for column in zip(*found, strict=True)] or [np.zeros(0)] * 7
    row = columns[6].astype(np.int64)
    start, stop = spans.around(row)
    offset = np.concatenate([[0], np.cumsum(stop - start)])
    ranges = np.stack(columns[2:6], axis=1).astype(np.float64)
    return _Wanted(columns[0].astype(np.int64), columns[1].astype(np.int64), ranges, row, start, offset)


def _by_feature(top: TopRows, features: Int[ndarray, " live"]) -> list[list[int]]:
    """Rows of highest activation of every feature, highest first."""
    owner, row = top.feature.numpy(), top.row.numpy()
    edges = np.searchsorted(owner, features, "left"), np.searchsorted(owner, features, "right")
    return [row[first:last].tolist() for first, last in zip(*edges, strict=True)]


@dataclass(frozen=True)
class _Spans:
    """The rows around a row, within its sequence."""

    token: Int[ndarray, " row"]
    sample: Int[ndarray, " row"]
    edges: Int[ndarray, " edge"]
    """First row of every sequence, and the number of rows."""
    before: int
    after: int

    @classmethod
    def of(cls, store: RowStore, config: FeaturesConfig) -> "_Spans":
        sample = np.asarray(store.tokens.sample)
        edges = np.append(sequence_starts(sample, range(store.n_rows)), store.n_rows)
        return cls(np.asarray(store.tokens.token_id), sample, edges, config.context_before, config.context_after)

    def around(self, row: Int[ndarray, " context"]) -> tuple[Int[ndarray, " context"], Int[ndarray, " context"]]:
        """First row of each context, and the row after its last."""
        place = np.searchsorted(self.edges, row, "right")
        start = np.maximum(row - self.before, self.edges[place - 1])
        return start, np.minimum(row + self.after + 1, self.edges[place])

    def distinct(self, ranked: Sequence[int], n: int) -> list[int]:
        """The first ``n`` rows of a ranking that differ in their samples and in their texts up to the row."""
        starts = self.around(np.asarray(ranked, dtype=np.int64))[0].tolist() if len(ranked) else ()
        samples, texts = set[int](), set[bytes]()

        def new(row: int, start: int) -> bool:
            sample, text = int(self.sample[row]), self.token[start : row + 1].tobytes()
            if sample in samples or text in texts:
                return False
            samples.add(sample)
            texts.add(text)
            return True

        return list(islice((row for row, start in zip(ranked, starts, strict=True) if new(row, start)), n))


def _activations(
    crosscoder: Crosscoder, store: RowStore, wanted: _Wanted, config: FeaturesConfig
) -> dict[str, Float[ndarray, " token"]]:
    """Activations at every token, joint and by model, and 0 at rows that the store drops. Equal read-outs share an array."""
    encoder = AllReadouts(crosscoder, Readout(config.readout, config.near))
    own = [place for place, same in enumerate(encoder.same_as_joint) if not same]
    rows, features = wanted.token_rows, wanted.token_features
    values = np.zeros((1 + len(own), len(rows)), dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    ordered, options = rows[order], {} if config.site is None else {"site": config.site}
    with progress(store.n_rows, "contexts", unit="rows") as advance:
        for start in range(0, store.n_rows, config.batch_rows):
            stop = min(start + config.batch_rows, store.n_rows)
            here = order[slice(*np.searchsorted(ordered, (start, stop)))]
            here = here[kept_rows(store, start, stop)[rows[here] - start]]
            if len(here):
                needed, place = np.unique(rows[here] - start, return_inverse=True)
                x = store.rows(start, stop, **options)[torch.from_numpy(needed)].to(crosscoder.device)
                found = encoder.encode(x)
                at = torch.from_numpy(place).to(x.device), torch.from_numpy(features[here]).to(x.device)
                for line, readout in enumerate([0, *(model + 1 for model in own)]):
                    values[line, here] = found[readout][at].float().cpu().numpy()
            advance(stop - start)
    models = enumerate(crosscoder.model_names)
    by_model = {name: values[1 + own.index(place) if place in own else 0] for place, name in models}
    return {"joint": values[0], **by_model}
