"""Tokens that a feature's decoder promotes and suppresses through each model's own unembedding (logit lens).

The direction s_m W_dec[k, m], in the model's own units, is unembedded as if it were written to the last residual stream. The
effect of the later blocks is ignored, so the lists say little about features far below the last block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.dictionary.readout import model_scale
from mechprobe.features.config import FinalNorm
from mechprobe.memory import even_ranges
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.log_probs import CHUNK_VALUES
from mechprobe.models.unembedding import unembedding
from sae_training import Crosscoder

Ends = tuple[Int[ndarray, "feature n"], Float[ndarray, "feature n"]]
"""Ids of tokens, and their effects."""
_SPARE = 8


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
    both = promoted_ids(model, directions, len(tokenizer), n=n, final_norm=final_norm)
    promoted, suppressed = ([_effects(tokenizer, *row) for row in zip(*ends, strict=True)] for ends in both)
    return [PromotedTokens(*ends) for ends in zip(promoted, suppressed, strict=True)]


def _effects(tokenizer: Any, ids: Int[ndarray, " n"], values: Float[ndarray, " n"]) -> tuple[TokenEffect, ...]:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple(TokenEffect(token_text(tokenizer, token), token, round(value, 4)) for token, value in pairs)


def promoted_ids(
    model: LanguageModel,
    directions: Float[Tensor, "feature d_model"],
    n_tokens: int,
    *,
    n: int = 8,
    final_norm: FinalNorm = "scale",
) -> tuple[Ends, Ends]:
    """Ids and effects of the tokens that `promoted_tokens` gives, promoted and suppressed, as arrays.

    The arguments are as there; ids from ``n_tokens`` on are no tokens.
    """
    unembed = unembedding(model)
    ends: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
    parts = list(even_ranges(len(directions), max(1, CHUNK_VALUES // len(unembed.weight))))
    for part in parts or [slice(0, 0)]:
        logits = unembed.logits(directions[part], norm=final_norm == "scale")[:, :n_tokens].cpu()
        for sign, end in zip((1, -1), ends, strict=True):
            ids = _strongest(logits * sign, n)
            end.append((ids, logits.gather(1, ids)))
    promoted, suppressed = ([torch.cat(part).numpy() for part in zip(*end, strict=True)] for end in ends)
    return (promoted[0], promoted[1]), (suppressed[0], suppressed[1])


def check_unembedding(model: LanguageModel) -> None:
    """Raise `ModelError` where the unembedding of a model cannot be used; called before hours of other work."""
    with unloaded_afterwards(model):
        unembedding(model)


def promoted_by_features(
    crosscoder: Crosscoder, family: ModelFamily, features: Sequence[int], *, n: int = 8, final_norm: FinalNorm = "scale"
) -> list[dict[str, Any]]:
    """`promoted_tokens` of every model, as one JSON value per feature: ``final_norm``, and in ``models`` the tokens by model.

    Weights that were not loaded before are released again after each model.
    """
    found = PromotedOfModels(crosscoder, features, family.tokenizer, n=n, final_norm=final_norm)
    for name in crosscoder.model_names:
        with unloaded_afterwards(family[name]) as model:
            found.add(model)
    return found.by_feature


class PromotedOfModels:
    """`promoted_by_features`, of one model after the other, for work that has each of them in memory anyway."""

    def __init__(
        self, crosscoder: Crosscoder, features: Sequence[int], tokenizer: Any, *, n: int, final_norm: FinalNorm
    ) -> None:
        self._crosscoder, self._features, self._tokenizer = crosscoder, list(features), tokenizer
        self._n = n
        self._norm: FinalNorm = final_norm
        self._of_model = dict[str, list[PromotedTokens]]()

    def add(self, model: LanguageModel) -> None:
        """Compute the tokens of a model of the crosscoder."""
        index = self._crosscoder.model_names.index(model.name)
        directions = self._crosscoder.W_dec[self._features, index] * model_scale(self._crosscoder)[index]
        self._of_model[model.name] = promoted_tokens(
            model, directions.detach(), self._tokenizer, n=self._n, final_norm=self._norm
        )

    @property
    def by_feature(self) -> list[dict[str, Any]]:
        """One JSON value per feature, with the tokens by model in the order of the crosscoder."""
        names = self._crosscoder.model_names
        return [
            {"final_norm": self._norm, "models": {name: asdict(self._of_model[name][index]) for name in names}}
            for index in range(len(self._features))
        ]


@contextmanager
def unloaded_afterwards(model: LanguageModel) -> Iterator[LanguageModel]:
    """Release weights that are loaded inside the block."""
    loaded = "hf" in model.__dict__
    try:
        yield model
    finally:
        if not loaded:
            model.release()


def _strongest(logits: Float[Tensor, "feature vocab"], n: int) -> Int[Tensor, "feature n"]:
    """Ids of the ``n`` largest logits of each row, largest first; of equal ones the lower id comes first."""
    spare = min(n + _SPARE, logits.shape[1])
    ids = logits.topk(spare).indices.sort(dim=1).values
    values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    found = ids.gather(1, order)[:, :n]
    # topk may leave out the lower ids of a tie that goes on behind its end.
    tied = (
        values[:, min(n, spare) - 1] == values[:, -1] if spare < logits.shape[1] else torch.zeros(0, dtype=torch.bool)
    )
    for row in tied.nonzero().flatten().tolist():
        found[row] = torch.argsort(logits[row], descending=True, stable=True)[:n]
    return found


_BROKEN = "\N{REPLACEMENT CHARACTER}"


def token_text(tokenizer: Any, token_id: int) -> str:
    """The raw text of a token: special tokens by name, and a part of a character as the vocabulary spells it."""
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if text and _BROKEN not in text else str(tokenizer.convert_ids_to_tokens(token_id))
