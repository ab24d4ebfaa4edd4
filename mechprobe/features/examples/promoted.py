"""Tokens that a feature's decoder promotes and suppresses through each model's own unembedding (logit lens).

The direction is s_m W_dec[k, m], in the model's own units, as if it stood in the last residual stream: what later
blocks make of it is left out, so the lists say little of a feature far below the last block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.readout import model_scale
from mechprobe.features.config import FinalNorm
from mechprobe.features.examples.token_text import token_text
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.unembedding import unembedding
from sae_training import Crosscoder


@dataclass(frozen=True)
class TokenEffect:
    """One token.

    Attributes:
        token: Its text.
        id: Its id.
        value: Change of its logit, about the mean over the vocabulary, per unit of activation: times the final norm's
            spread where that norm is taken into account.
    """

    token: str
    id: int
    value: float


@dataclass(frozen=True)
class PromotedTokens:
    """Ends of the vocabulary along one direction, strongest first; on ties the lower id comes first."""

    promoted: tuple[TokenEffect, ...]
    suppressed: tuple[TokenEffect, ...]


def promoted_tokens(
    model: LanguageModel,
    directions: Float[Tensor, "feature d_model"],
    tokenizer: Any,
    *,
    n: int = 8,
    final_norm: FinalNorm = "scale",
) -> list[PromotedTokens]:
    """The ``n`` tokens whose logit each direction raises most and lowers most.

    Args:
        model: Whose final norm and unembedding are taken.
        directions: In the model's own units.
        tokenizer: Turns ids into text; rows of the unembedding without a token (padding) are left out.
        n: How many tokens at each end.
        final_norm: Whether the direction goes through the final norm; see `mechprobe.models.unembedding`.

    Raises:
        ModelError: The model's final norm or unembedding is of an unknown form.
    """
    logits = unembedding(model).logits(directions, norm=final_norm == "scale")[:, : len(tokenizer)].cpu()
    return [PromotedTokens(_ends(row, tokenizer, n, 1), _ends(row, tokenizer, n, -1)) for row in logits]


def check_unembedding(model: LanguageModel) -> None:
    """Raise `ModelError` now, before hours of work, where promoted tokens of a model cannot be had."""
    with _kept_as_it_was(model):
        unembedding(model)


def promoted_by_features(
    crosscoder: Crosscoder,
    family: ModelFamily,
    features: Sequence[int],
    *,
    n: int = 8,
    final_norm: FinalNorm = "scale",
) -> list[dict[str, Any]]:
    """`promoted_tokens` of some features in every model of the crosscoder, as JSON.

    Weights that were not loaded before are dropped again after each model.

    Returns:
        One value per feature: ``final_norm`` and, by model in ``models``, ``promoted`` and ``suppressed``.
    """
    by_model: dict[str, list[PromotedTokens]] = {}
    scale = model_scale(crosscoder).detach()
    for index, name in enumerate(crosscoder.model_names):
        directions = crosscoder.W_dec[list(features), index].detach() * scale[index]
        with _kept_as_it_was(family[name]) as model:
            by_model[name] = promoted_tokens(model, directions, family.tokenizer, n=n, final_norm=final_norm)
    return [
        {"final_norm": final_norm, "models": {name: asdict(found[place]) for name, found in by_model.items()}}
        for place in range(len(features))
    ]


@contextmanager
def _kept_as_it_was(model: LanguageModel) -> Iterator[LanguageModel]:
    """Drop weights again that were loaded inside."""
    loaded = "hf" in model.__dict__
    try:
        yield model
    finally:
        if not loaded:
            model.release()


def _ends(logits: Float[Tensor, " vocab"], tokenizer: Any, n: int, sign: int) -> tuple[TokenEffect, ...]:
    ids = torch.argsort(logits * sign, descending=True, stable=True)[:n].tolist()
    return tuple(TokenEffect(token_text(tokenizer, token), token, round(float(logits[token]), 4)) for token in ids)
