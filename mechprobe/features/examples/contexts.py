"""Contexts in which a feature is active, as text with the activations of every model: the highest ones, and random ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import SelectionError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.promoted import token_text
from mechprobe.features.examples.quantiles import RandomRows, collect_random_rows
from mechprobe.features.table.collect import RowStore, kept_rows
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.progress import progress
from sae_training import Crosscoder

EXAMPLES_FILE = "examples.json"


def feature_examples(
    crosscoder: Crosscoder,
    store: RowStore,
    tokenizer: Any,
    table: FeatureTable,
    features: Iterable[int],
    config: FeaturesConfig | None = None,
    *,
    promoted: Sequence[dict[str, Any] | None] | None = None,
) -> list[dict[str, Any]]:
    """Top and random contexts of some features, beside the tokens that their decoders promote.

    Each list has at most one context per sample, and no two contexts whose text is equal up to the row (the same prompt with
    another response). Token texts are raw: callers that display them must escape them.

    Args:
        crosscoder: The dictionary.
        store: The store that the table was computed on.
        tokenizer: Decodes ids.
        table: The table, with the top rows of every feature.
        features: Features, in the order wanted.
        config: Number and length of the contexts.
        promoted: What `promoted_by_features` gives for the features; null in every entry if None.

    Returns:
        One JSON value per feature, with the keys that ``docs/examples.md`` explains: ``feature``, ``statistics`` (its row of
        the table), ``examples`` (highest activation first), ``quantiles`` (lowest first) with random ``examples``, ``n_active``
        of ``n_random_rows``, and ``promoted``. A context has ``sample``, ``row``, ``tokens``, ``is_response``, ``peak`` (the
        index of the row among the tokens) and ``activations``, ``joint`` and by model under its own read-out.

    Raises:
        SelectionError: A feature does not exist or is given twice.
    """
    config, features = config or FeaturesConfig(), list(features)
    check_features(features, table)
    builder = _ContextBuilder(crosscoder, store, tokenizer, config)
    drawn = collect_random_rows(crosscoder, store, features, config) if config.n_quantiles and features else None
    promoted = [None] * len(features) if promoted is None else promoted
    found = []
    with progress(len(features), "contexts", unit="features", inner=True) as advance:
        for feature, tokens in zip(features, promoted, strict=True):
            ranked = [row for row, _ in table.top_rows.of(feature)]
            found.append(
                {
                    "feature": feature,
                    "statistics": _statistics(table, feature),
                    "examples": builder.contexts(feature, ranked, config.n_examples),
                    **_random_contexts(builder, feature, drawn),
                    "promoted": tokens,
                }
            )
            advance()
    return found


def check_features(features: Sequence[int], table: FeatureTable) -> None:
    """Raise `SelectionError` for a feature that does not exist or is given twice."""
    for index, feature in enumerate(features):
        if not 0 <= feature < len(table):
            raise SelectionError(f"Feature {feature} does not exist; the features are 0 to {len(table) - 1}.")
        if feature in features[:index]:
            raise SelectionError(f"Feature {feature} is given twice; give each feature once.")


def shown_features(table: FeatureTable, n: int) -> list[int]:
    """Features to show: the ``n`` highest by NRN, and by decoder shift times mean activation, of each tuned model."""
    alive = table.frame.loc[~table.dead]
    rankings = [
        ranking.to_numpy()
        for name in table.tuned
        for ranking in (alive[f"nrn_{name}"], alive[f"shift_{name}"] * alive["mean_joint"])
    ]
    best = [np.argsort(-ranking, kind="stable")[:n] for ranking in rankings]
    return list(dict.fromkeys(int(feature) for rows in best for feature in alive["feature"].to_numpy()[rows]))


def _statistics(table: FeatureTable, feature: int) -> dict[str, Any]:
    row = {key: value for key, value in table.frame.iloc[feature].items() if not str(key).startswith("beta_")}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    return {str(key): None if isinstance(value, float) and isnan(value) else value for key, value in plain.items()}


def _random_contexts(builder: "_ContextBuilder", feature: int, drawn: RandomRows | None) -> dict[str, Any]:
    if drawn is None:
        return {"quantiles": [], "n_active": 0, "n_random_rows": 0}
    n = builder.config.n_per_quantile
    quantiles = [
        {
            "low": part.low,
            "high": part.high,
            "smallest": round(part.smallest, 4),
            "largest": round(part.largest, 4),
            "examples": builder.contexts(feature, part.rows, n),
        }
        for part in drawn.quantiles(feature, builder.config.n_quantiles)
    ]
    n_active = int(drawn.n_active[drawn.features.index(feature)])
    return {"quantiles": quantiles, "n_active": n_active, "n_random_rows": drawn.n_rows}


@dataclass(frozen=True)
class _ContextBuilder:
    crosscoder: Crosscoder
    store: RowStore
    tokenizer: Any
    config: FeaturesConfig

    def contexts(self, feature: int, ranked: Sequence[int], n: int) -> list[dict[str, Any]]:
        """Contexts of the first ``n`` rows of a ranking that differ in their samples and in their texts up to the row."""
        tokens, rows, seen = self.store.tokens, list[int](), set[int | tuple[int, ...]]()
        for row in ranked:
            if len(rows) == n:
                break
            sample = int(tokens.sample[row])
            text = tuple(int(token) for token in tokens.token_id[self._span(row)[0] : row + 1])
            if seen.isdisjoint((sample, text)):
                seen |= {sample, text}
                rows.append(row)
        return [self._context(feature, row) for row in rows]

    def _span(self, row: int) -> tuple[int, int]:
        """First row of a context and the row after its last, within the sample of ``row``."""
        first = max(0, row - self.config.context_before)
        last = min(self.store.n_rows, row + self.config.context_after + 1)
        sample = self.store.tokens.sample
        same = np.flatnonzero(np.asarray(sample[first:last]) == sample[row]) + first
        return int(same[0]), int(same[-1]) + 1

    def _context(self, feature: int, row: int) -> dict[str, Any]:
        tokens = self.store.tokens
        start, stop = self._span(row)
        options = {} if self.config.site is None else {"site": self.config.site}
        x = self.store.rows(start, stop, **options).to(self.crosscoder.device)
        kept = torch.from_numpy(kept_rows(self.store, start, stop)).to(x.device)
        return {
            "sample": int(tokens.sample[row]),
            "row": row,
            "peak": row - start,
            "tokens": [token_text(self.tokenizer, int(token)) for token in tokens.token_id[start:stop]],
            "is_response": [bool(flag) for flag in tokens.is_response[start:stop]],
            "activations": self._activations(x, feature, kept),
        }

    @torch.no_grad()
    def _activations(
        self, x: Float[Tensor, "pos model d_model"], feature: int, kept: Bool[Tensor, " pos"]
    ) -> dict[str, list[float]]:
        """Activations under every read-out, 0 at rows that the store drops."""
        crosscoder, readout = self.crosscoder, Readout(self.config.readout, self.config.near)
        values = {"joint": crosscoder.encode(x)[:, feature]}
        values |= {name: readout.feature_acts(crosscoder, x, name)[:, feature] for name in crosscoder.model_names}
        shown = {name: torch.where(kept, column, 0.0).tolist() for name, column in values.items()}
        return {name: [round(value, 4) for value in column] for name, column in shown.items()}
