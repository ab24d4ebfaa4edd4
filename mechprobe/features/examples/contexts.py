"""Contexts in which a feature is active, as text with the activations of every model: the highest ones, and random ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import SelectionError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.promoted import promoted_by_features, token_text
from mechprobe.features.examples.quantiles import RandomRows, collect_random_rows
from mechprobe.features.rows import RowStore
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.models.family import ModelFamily
from sae_training import Crosscoder

EXAMPLES_FILE = "examples.json"


@runtime_checkable
class TokenStore(RowStore, Protocol):
    """A row store that knows the token of each row."""

    @property
    def tokens(self) -> Any:
        """Arrays ``token_id``, ``sample``, ``position``, ``is_response``, one entry per row."""
        ...


def feature_examples(
    crosscoder: Crosscoder,
    store: TokenStore,
    tokenizer: Any,
    table: FeatureTable,
    features: Iterable[int],
    config: FeaturesConfig | None = None,
    *,
    family: ModelFamily | None = None,
) -> list[dict[str, Any]]:
    """Top and random contexts of some features, and the tokens that their decoders promote.

    Each list has at most one context per sample, and no two contexts whose text is equal up to the row (the same prompt with
    another response). Token texts are raw: callers that display them must escape them.

    Args:
        crosscoder: The dictionary.
        store: The store that the table was computed on.
        tokenizer: Decodes ids.
        table: The table, with the top rows of every feature.
        features: Features, in the order wanted.
        config: Number and length of the contexts.
        family: The models, for the promoted tokens; without them ``promoted`` is null.

    Returns:
        One JSON value per feature, with these keys:

        - ``feature``, and ``statistics``, its row of the table;
        - ``examples``, highest activation first, each with ``sample``, ``row``, ``tokens``, ``is_response``, ``peak`` (the
          index of the row among the tokens) and ``activations``, by model under its own read-out, and ``joint``;
        - ``quantiles``, lowest first, each with ``low`` and ``high`` (shares of the active rows), ``smallest`` and
          ``largest`` activation, and random ``examples``;
        - ``n_active`` and ``n_random_rows``: active rows among those the random contexts are drawn from, and all of them;
        - ``promoted``: see `mechprobe.features.examples.promoted`.

    Raises:
        SelectionError: A feature does not exist or is given twice.
        ModelError: A model's unembedding cannot be used.
    """
    config, features = config or FeaturesConfig(), list(features)
    check_features(features, table)
    builder = _ContextBuilder(crosscoder, store, tokenizer, config)
    drawn = collect_random_rows(crosscoder, store, features, config) if config.n_quantiles and features else None
    promoted: list[dict[str, Any] | None] = [None] * len(features)
    if family is not None and config.n_promoted:
        options: dict[str, Any] = {"n": config.n_promoted, "final_norm": config.final_norm}
        promoted[:] = promoted_by_features(crosscoder, family, features, **options)
    return [
        {
            "feature": feature,
            "statistics": _statistics(table, feature),
            "examples": builder.contexts(feature, [row for row, _ in table.top_rows.of(feature)], config.n_examples),
            **_random_contexts(builder, feature, drawn),
            "promoted": tokens,
        }
        for feature, tokens in zip(features, promoted, strict=True)
    ]


def check_features(features: Sequence[int], table: FeatureTable) -> None:
    """Raise `SelectionError` for a feature that does not exist or is given twice."""
    for index, feature in enumerate(features):
        if not 0 <= feature < len(table):
            raise SelectionError(f"Feature {feature} does not exist; the features are 0 to {len(table) - 1}.")
        if feature in features[:index]:
            raise SelectionError(f"Feature {feature} is given twice; give each feature once.")


def shown_features(table: FeatureTable, n: int) -> list[int]:
    """Features to show: the ``n`` highest by NRN, and by decoder shift times mean activation, of each tuned model."""
    chosen: dict[int, None] = {}
    alive = table.frame.loc[~table.dead]
    for name in table.tuned:
        by_nrn = alive[f"nrn_{name}"]
        by_shift = alive[f"shift_{name}"] * alive["mean_joint"]
        for ranking in (by_nrn.to_numpy(), by_shift.to_numpy()):
            best = np.argsort(-ranking, kind="stable")[:n]
            chosen |= dict.fromkeys(int(feature) for feature in alive["feature"].to_numpy()[best])
    return list(chosen)


def _statistics(table: FeatureTable, feature: int) -> dict[str, Any]:
    row = table.frame.iloc[feature].to_dict()
    return {key: _plain(value) for key, value in row.items() if not key.startswith("beta_")}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and pd.isna(value) else value


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
    """Builds contexts from rows of a store."""

    crosscoder: Crosscoder
    store: TokenStore
    tokenizer: Any
    config: FeaturesConfig

    def contexts(self, feature: int, ranked: Sequence[int], n: int) -> list[dict[str, Any]]:
        """Contexts of the first ``n`` rows of a ranking that differ in their samples and in their texts up to the row."""
        tokens, rows = self.store.tokens, list[int]()
        samples: set[int] = set()
        texts: set[tuple[int, ...]] = set()
        for row in ranked:
            if len(rows) == n:
                break
            sample = int(tokens.sample[row])
            text = tuple(int(token) for token in tokens.token_id[self._span(row)[0] : row + 1])
            if sample not in samples and text not in texts:
                samples.add(sample)
                texts.add(text)
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
        return {
            "sample": int(tokens.sample[row]),
            "row": row,
            "peak": row - start,
            "tokens": [token_text(self.tokenizer, int(token)) for token in tokens.token_id[start:stop]],
            "is_response": [bool(flag) for flag in tokens.is_response[start:stop]],
            "activations": self._activations(x, feature),
        }

    @torch.no_grad()
    def _activations(self, x: Float[Tensor, "pos model d_model"], feature: int) -> dict[str, list[float]]:
        crosscoder, readout = self.crosscoder, Readout(self.config.readout, self.config.near)
        values = {"joint": crosscoder.encode(x)[:, feature]}
        values |= {name: readout.feature_acts(crosscoder, x, name)[:, feature] for name in crosscoder.model_names}
        return {name: [round(float(value), 4) for value in column] for name, column in values.items()}
