"""Next-token loss of each model with the crosscoder's reconstruction spliced into its residual stream.

The reconstruction replaces the residual at the tokens that a store keeps and the crosscoder describes; other tokens, such as
special ones and attention sinks, are left as they are. The baseline puts zeros at the same tokens. ``ce_recovered = (zero − spliced) / (zero − clean)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.result import SplicedLoss
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import StoreError
from mechprobe.models.blocks import recording, splice
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class TokenizedSample:
    """One sample as the models read it.

    Attributes:
        ids: Token ids, special tokens included.
        kept: Positions that the store keeps.
        response: Positions of response tokens.
    """

    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    response: tuple[bool, ...]


def held_out_samples(store: ActivationStore, n: int) -> list[TokenizedSample]:
    """The first ``n`` held-out samples of a store."""
    sequences = (store.sequence(sample) for sample in store.held_out_samples()[:n])
    return [TokenizedSample(sequence.ids, sequence.kept, sequence.response) for sequence in sequences]


@torch.no_grad()
def spliced_losses(
    crosscoder: Crosscoder,
    family: ModelFamily,
    site: Site,
    sequences: Sequence[TokenizedSample],
    *,
    batch_size: int = 32,
) -> dict[str, SplicedLoss]:
    """Measure the `SplicedLoss` of every model of the crosscoder on held-out samples, ``batch_size`` per forward pass.

    Raises:
        StoreError: No kept token of any sample is followed by a token to predict.
    """
    names = crosscoder.model_names
    targets = "response" if any(any(sequence.response) for sequence in sequences) else "all"
    sums = torch.zeros(len(names), 5, dtype=torch.float64)  # clean, spliced, zero, KL spliced, KL zero
    n_predictions, rule = 0, TokenRule.of(crosscoder)
    with progress(len(sequences), "spliced loss", unit="samples") as advance:
        for start in range(0, len(sequences), batch_size):
            part = rule.without_first(sequences[start : start + batch_size])
            batch = _Batch.build(part, targets, str(crosscoder.device))
            n_predictions += int(batch.scored.sum())
            sums += _batch_sums(crosscoder, family, site, batch)
            advance(len(part))
    if n_predictions == 0:
        raise StoreError(
            "In the held-out samples no kept token is followed by a token to predict; cache longer responses, or more prompts."
        )
    means = (sums / n_predictions).tolist()
    return {
        name: SplicedLoss(
            ce_clean=clean,
            ce_spliced=spliced,
            ce_zero=zero,
            ce_recovered=(zero - spliced) / (zero - clean) if zero != clean else float("nan"),
            kl_spliced=kl_spliced,
            kl_zero=kl_zero,
            n_predictions=n_predictions,
            n_samples=len(sequences),
            targets=targets,
        )
        for name, (clean, spliced, zero, kl_spliced, kl_zero) in zip(names, means, strict=True)
    }


@dataclass(frozen=True)
class _Batch:
    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]
    """Positions whose next token is predicted."""

    @classmethod
    def build(cls, sequences: Sequence[TokenizedSample], targets: str, device: str) -> "_Batch":
        """Pad on the right: a causal model's output at a position does not depend on later positions."""
        ids, attention = padded([sequence.ids for sequence in sequences], 0)
        kept, target, scored = torch.zeros(3, *ids.shape, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            n = len(sequence.ids)
            kept[row, :n] = torch.tensor(sequence.kept)
            target[row, :n] = torch.tensor(sequence.response) if targets == "response" else True
        scored[:, :-1] = kept[:, :-1] & target[:, 1:] & (attention[:, 1:] == 1)
        return cls(ids.to(device), attention.to(device), kept.to(device), scored.to(device))


def _batch_sums(crosscoder: Crosscoder, family: ModelFamily, site: Site, batch: _Batch) -> Float[Tensor, "model 5"]:
    clean, residuals = [], []
    for name in crosscoder.model_names:
        model: Any = family[name].hf
        with recording(model, [site], stop=False) as found:
            clean.append(_log_probs(model, batch))
        residuals.append(found[site])
    x = torch.stack([residual.float() for residual in residuals], dim=2)
    described = TokenRule.of(crosscoder).by_norm(dict(zip(crosscoder.model_names, x.unbind(2), strict=True)))
    kept = batch.kept if described is None else batch.kept & described
    reconstruction, zero = x.clone(), x.clone()
    zero[kept] = x[kept] - crosscoder.unflatten(crosscoder.target(x[kept]))
    reconstruction[kept] = zero[kept] + crosscoder.decode(crosscoder.encode(x[kept]))
    sums = torch.zeros(len(clean), 5, dtype=torch.float64)
    target = batch.ids.roll(-1, dims=1)[batch.scored]
    for index, name in enumerate(crosscoder.model_names):
        model, reference = family[name].hf, clean[index]
        sums[index, 0] = _ce(reference, target)
        for column, replacement in ((1, reconstruction), (2, zero)):
            with splice(model, site, lambda resid, new=replacement[:, :, index]: new.to(resid.dtype)):
                edited = _log_probs(model, batch)
            sums[index, column] = _ce(edited, target)
            sums[index, column + 2] = float(kl_div(edited, reference, log_target=True, reduction="sum"))
    return sums


def _log_probs(model: Any, batch: _Batch) -> Float[Tensor, "prediction vocab"]:
    """Log-probabilities at the scored positions."""
    logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
    return log_softmax(logits[batch.scored].double(), dim=-1)


def _ce(log_probs: Tensor, target: Tensor) -> float:
    return -float(log_probs.gather(1, target.unsqueeze(1)).sum())
