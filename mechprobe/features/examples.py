"""Contexts in which a latent fires most, as text, with every model's activation side by side."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.errors import SelectionError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.readout import Readout
from mechprobe.features.rows import RowStore
from mechprobe.features.table import FeatureTable
from sae_training import Crosscoder

EXAMPLES_FILE = "examples.json"


@runtime_checkable
class TokenStore(RowStore, Protocol):
    """A row store that also knows which token each row is."""

    @property
    def tokens(self) -> Any:
        """Arrays ``token_id``, ``sample``, ``position``, ``is_response``, one entry per row."""
        ...


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as text; special tokens by their name, blanks kept."""
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text or str(tokenizer.convert_ids_to_tokens(token_id))


def feature_examples(
    crosscoder: Crosscoder,
    store: TokenStore,
    tokenizer: Any,
    table: FeatureTable,
    features: Iterable[int],
    config: FeaturesConfig | None = None,
) -> list[dict[str, Any]]:
    """Top contexts of some latents.

    Args:
        crosscoder: The dictionary.
        store: Where the table's rows come from.
        tokenizer: Turns ids into text.
        table: Has the top rows of every latent.
        features: Ids of the latents, in the order wanted.
        config: How many contexts, and how long.

    Returns:
        One JSON value per latent: ``feature``, its row of the table in ``statistics``, and ``examples``, each with
        ``tokens``, ``is_response``, ``peak`` (place of the highest activation) and ``activations`` by model and
        ``joint``. One context of a sample is taken, and none that up to its peak reads like one already taken
        (the same prompt with another response).

    Raises:
        SelectionError: An id is out of range.
    """
    config = config or FeaturesConfig()
    result = []
    for feature in features:
        if not 0 <= feature < len(table):
            raise SelectionError(f"Feature {feature} does not exist: there are features 0 to {len(table) - 1}.")
        rows = _distinct_rows(store, table.top_rows.of(feature), config)
        examples = [_context(crosscoder, store, tokenizer, feature, row, config) for row in rows]
        result.append({"feature": feature, "statistics": _statistics(table, feature), "examples": examples})
    return result


def shown_features(table: FeatureTable, n: int) -> list[int]:
    """Latents worth showing: the ``n`` highest by NRN and by decoder shift times mean activation, per tuned model."""
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


def _distinct_rows(store: TokenStore, ranked: Sequence[tuple[int, float]], config: FeaturesConfig) -> list[int]:
    """The first rows of a ranking whose samples and whose texts up to the row differ."""
    rows: list[int] = []
    samples: set[int] = set()
    texts: set[tuple[int, ...]] = set()
    for row, _ in ranked:
        sample = int(store.tokens.sample[row])
        start = _span(store, row, config)[0]
        text = tuple(int(token) for token in store.tokens.token_id[start : row + 1])
        if sample not in samples and text not in texts and len(rows) < config.n_examples:
            samples.add(sample)
            texts.add(text)
            rows.append(row)
    return rows


def _span(store: TokenStore, row: int, config: FeaturesConfig) -> tuple[int, int]:
    """First row of a context, and the row behind its last: never beyond the sample of ``row``."""
    first = max(0, row - config.context_before)
    last = min(store.n_rows, row + config.context_after + 1)
    same = np.flatnonzero(np.asarray(store.tokens.sample[first:last]) == store.tokens.sample[row]) + first
    return int(same[0]), int(same[-1]) + 1


def _context(
    crosscoder: Crosscoder, store: TokenStore, tokenizer: Any, feature: int, row: int, config: FeaturesConfig
) -> dict[str, Any]:
    tokens = store.tokens
    start, stop = _span(store, row, config)
    options = {} if config.site is None else {"site": config.site}
    x = store.rows(start, stop, **options).to(crosscoder.device)
    return {
        "sample": int(tokens.sample[row]),
        "row": row,
        "peak": row - start,
        "tokens": [token_text(tokenizer, int(token)) for token in tokens.token_id[start:stop]],
        "is_response": [bool(flag) for flag in tokens.is_response[start:stop]],
        "activations": _activations(crosscoder, x, feature, Readout(config.readout, config.near)),
    }


@torch.no_grad()
def _activations(
    crosscoder: Crosscoder, x: Float[Tensor, "pos model d_model"], feature: int, readout: Readout
) -> dict[str, list[float]]:
    values = {"joint": crosscoder.encode(x)[:, feature]}
    values |= {name: readout.feature_acts(crosscoder, x, name)[:, feature] for name in crosscoder.model_names}
    return {name: [round(float(value), 4) for value in column] for name, column in values.items()}
