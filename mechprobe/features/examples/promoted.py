"""Tokens that a feature's decoder promotes and suppresses through each model's own unembedding (logit lens).

The direction s_m W_dec[k, m], in the model's own units, is unembedded as if it were written to the last residual stream. The
effect of the later blocks is ignored, so the lists say little about features far below the last block.
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
from mechprobe.memory import even_ranges
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.log_probs import CHUNK_VALUES
from mechprobe.models.unembedding import unembedding
from sae_training import Crosscoder


@dataclass(frozen=True)
class TokenEffect:
    """The effect of a direction on one token.

    Attributes:
        token: Text of the token.
        id: Its id.
        value: Change of its logit per unit of activation, minus the mean change over the vocabulary. With the final norm, the
            value is multiplied by the scale by which that norm divides the residual.
    """

    token: str
    id: int
    value: float


@dataclass(frozen=True)
class PromotedTokens:
    """The tokens that a direction promotes and suppresses most, strongest first; of equal effects the lower id comes first."""

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
        model: The model whose final norm and unembedding are used.
        directions: Directions in the model's own units.
        tokenizer: Decodes ids. Rows of the unembedding without a token (padding) are left out.
        n: Number of promoted tokens, and of suppressed ones.
        final_norm: Whether the direction passes through the final norm; see `mechprobe.models.unembedding`.

    Raises:
        ModelError: The model's final norm or unembedding has an unknown form.
    """
    head, found = unembedding(model), list[PromotedTokens]()
    for part in even_ranges(len(directions), max(1, CHUNK_VALUES // len(head.weight))):
        logits = head.logits(directions[part], norm=final_norm == "scale")[:, : len(tokenizer)].cpu()
        found += [PromotedTokens(_ends(row, tokenizer, n, 1), _ends(row, tokenizer, n, -1)) for row in logits]
    return found


def check_unembedding(model: LanguageModel) -> None:
    """Raise `ModelError` where the unembedding of a model cannot be used; called before hours of other work."""
    with _unloaded_afterwards(model):
        unembedding(model)


def promoted_by_features(
    crosscoder: Crosscoder, family: ModelFamily, features: Sequence[int], *, n: int = 8, final_norm: FinalNorm = "scale"
) -> list[dict[str, Any]]:
    """`promoted_tokens` of every model, as one JSON value per feature: ``final_norm``, and in ``models`` the tokens by model.

    Weights that were not loaded before are released again after each model.
    """
    by_model: dict[str, list[PromotedTokens]] = {}
    scale = model_scale(crosscoder).detach()
    for index, name in enumerate(crosscoder.model_names):
        directions = crosscoder.W_dec[list(features), index].detach() * scale[index]
        with _unloaded_afterwards(family[name]) as model:
            by_model[name] = promoted_tokens(model, directions, family.tokenizer, n=n, final_norm=final_norm)
    return [
        {"final_norm": final_norm, "models": {name: asdict(found[index]) for name, found in by_model.items()}}
        for index in range(len(features))
    ]


@contextmanager
def _unloaded_afterwards(model: LanguageModel) -> Iterator[LanguageModel]:
    """Release weights that are loaded inside the block."""
    loaded = "hf" in model.__dict__
    try:
        yield model
    finally:
        if not loaded:
            model.release()


def _ends(logits: Float[Tensor, " vocab"], tokenizer: Any, n: int, sign: int) -> tuple[TokenEffect, ...]:
    ids = torch.argsort(logits * sign, descending=True, stable=True)[:n].tolist()
    return tuple(TokenEffect(token_text(tokenizer, token), token, round(float(logits[token]), 4)) for token in ids)


_BROKEN = "\N{REPLACEMENT CHARACTER}"


def token_text(tokenizer: Any, token_id: int) -> str:
    """The raw text of a token: special tokens by name, and a part of a character as the vocabulary spells it."""
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if text and _BROKEN not in text else str(tokenizer.convert_ids_to_tokens(token_id))
