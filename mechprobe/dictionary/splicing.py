"""Next-token loss of each model with the crosscoder's reconstruction spliced into its residual stream.

The reconstruction replaces the residual at the rows that a store keeps (not at the tokens it drops, such as the first);
the zero baseline replaces the same rows by zeros. ``ce_recovered = (zero − spliced) / (zero − clean)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import reading, splice
from mechprobe.progress import progress
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class ReadSample:
    """One sample as the models read it.

    Attributes:
        ids: Token ids, special ones included.
        kept: Which positions the store keeps, and the crosscoder therefore knows.
        response: Which positions are response tokens.
    """

    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    response: tuple[bool, ...]


@dataclass(frozen=True)
class SplicedLoss:
    """Means over predictions, in nats.

    Attributes:
        ce_clean: Cross-entropy of the model as it is.
        ce_spliced: With the reconstruction in place of the residual.
        ce_zero: With zeros in place of the residual.
        ce_recovered: (zero − spliced) / (zero − clean); 1 where nothing is lost.
        kl_spliced: KL(clean ‖ spliced).
        kl_zero: KL(clean ‖ zero).
        n_predictions: Predicted tokens behind each mean.
        n_samples: Samples they come from.
        targets: ``response`` where only response tokens were predicted, ``all`` where the stream has none.
    """

    ce_clean: float
    ce_spliced: float
    ce_zero: float
    ce_recovered: float
    kl_spliced: float
    kl_zero: float
    n_predictions: int
    n_samples: int
    targets: str


@torch.no_grad()
def spliced_losses(
    crosscoder: Crosscoder, family: ModelFamily, site: Site, sequences: Sequence[ReadSample], *, batch_size: int = 32
) -> dict[str, SplicedLoss]:
    """`SplicedLoss` of every model of the crosscoder on the given samples.

    Args:
        crosscoder: The dictionary.
        family: Must hold every model of the crosscoder.
        site: Where the crosscoder reads.
        sequences: Held-out samples.
        batch_size: Samples in one forward pass.

    Raises:
        StoreError: No sequence has a token to predict after a kept one.
    """
    names = crosscoder.model_names
    targets = "response" if any(any(sequence.response) for sequence in sequences) else "all"
    sums = torch.zeros(len(names), 5, dtype=torch.float64)  # clean, spliced, zero, KL spliced, KL zero
    n_predictions = 0
    with progress(len(sequences), "spliced loss", unit="samples") as advance:
        for start in range(0, len(sequences), batch_size):
            part = sequences[start : start + batch_size]
            batch = _Batch.build(part, targets, str(crosscoder.device))
            n_predictions += int(batch.scored.sum())
            sums += _batch_sums(crosscoder, family, site, batch)
            advance(len(part))
    if n_predictions == 0:
        raise StoreError("The held-out samples have no token to predict after a kept one; make the store again.")
    means = (sums / n_predictions).tolist()
    return {
        name: SplicedLoss(
            clean,
            spliced,
            zero,
            (zero - spliced) / (zero - clean) if zero != clean else float("nan"),
            kl_spliced,
            kl_zero,
            n_predictions,
            len(sequences),
            targets,
        )
        for name, (clean, spliced, zero, kl_spliced, kl_zero) in zip(names, means, strict=True)
    }


@dataclass(frozen=True)
class _Batch:
    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]
    """Positions whose next token counts."""

    @classmethod
    def build(cls, sequences: Sequence[ReadSample], targets: str, device: str) -> "_Batch":
        """Pad on the right: what a causal model does at a position never depends on what follows it."""
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
        with reading(model, [site], stop=False) as found:
            clean.append(_log_probs(model, batch))
        residuals.append(found[site])
    x = torch.stack([residual.float() for residual in residuals], dim=2)
    reconstruction = x.clone()
    reconstruction[batch.kept] = crosscoder.decode(crosscoder.encode(x[batch.kept]))
    zero = torch.where(batch.kept[..., None, None], torch.zeros_like(x), x)
    sums = torch.zeros(len(clean), 5, dtype=torch.float64)
    target = batch.ids.roll(-1, dims=1)[batch.scored]
    for index, name in enumerate(crosscoder.model_names):
        model = family[name].hf
        reference = clean[index]
        sums[index, 0] = _ce(reference, target)
        for column, replacement in ((1, reconstruction), (2, zero)):
            with splice(model, site, lambda resid, new=replacement[:, :, index]: new.to(resid.dtype)):
                edited = _log_probs(model, batch)
            sums[index, column] = _ce(edited, target)
            kl = kl_div(edited, reference, log_target=True, reduction="sum")
            sums[index, column + 2] = float(kl)
    return sums


def _log_probs(model: Any, batch: _Batch) -> Float[Tensor, "prediction vocab"]:
    """Log-probabilities at the scored positions."""
    logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
    return log_softmax(logits[batch.scored].double(), dim=-1)


def _ce(log_probs: Tensor, target: Tensor) -> float:
    return -float(log_probs.gather(1, target.unsqueeze(1)).sum())
