"""All read-outs of a batch: the joint one, and each model's own without a product that is not needed.

What a read-out puts into the encoder is, slot by slot, one of the models' scaled activations (`mechprobe.dictionary.readout`). Slots that get
the same activation add their weights up first, ``Σ_slot x W_slot = x (Σ_slot W_slot)``: under ``swap`` among M models a model's
own read-out costs a product with one block of weights instead of M. A read-out that is the joint one is not made again.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.readout import Readout, model_scale
from sae_training import Crosscoder


class ReadoutEncoder:
    """Encodes batches of raw activations by every read-out; holds what does not change from batch to batch.

    Attributes:
        crosscoder: The dictionary, which must not change meanwhile.
        decoder: ``W_dec`` in float64.
        scale: Divisor of each model's activations, float64.
    """

    def __init__(self, crosscoder: Crosscoder, readout: Readout) -> None:
        self.crosscoder = crosscoder
        self.decoder: Float[Tensor, "d_sae model d_model"] = crosscoder.W_dec.detach().double()
        self.scale: Float[Tensor, " model"] = model_scale(crosscoder).double()
        models = range(crosscoder.n_models)
        joint = {slot: [slot] for slot in models}
        self._reads: list[tuple[list[int], Tensor] | None] = []
        for model in models:
            sources = _sources(crosscoder, readout, model)
            # None stands for the joint read-out.
            self._reads.append(None if sources == joint else (list(sources), _weights(crosscoder, sources)))

    @property
    def same_as_joint(self) -> list[bool]:
        """Of each model, whether its own read-out puts the same into the encoder as the joint one."""
        return [read is None for read in self._reads]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch model d_model"]) -> list[Float[Tensor, "batch d_sae"]]:
        """Latent activations by the joint read-out first, then by each model's own; equal ones are the same tensor."""
        crosscoder = self.crosscoder
        joint = crosscoder.encode(x)
        scaled = x.to(crosscoder.encoder.dtype) / self.scale.to(crosscoder.encoder.dtype)[:, None]
        found = [joint]
        for read in self._reads:
            if read is None:
                found.append(joint)
            else:
                sources, weights = read
                hidden_pre = torch.addmm(crosscoder.b_enc, scaled[:, sources].flatten(1), weights)
                found.append(crosscoder.activate(hidden_pre))
        return found


def _sources(crosscoder: Crosscoder, readout: Readout, model: int) -> dict[int, list[int]]:
    """Of a model's own read-out: whose activation goes into which slots; a slot that is nowhere gets zeros."""
    models = range(crosscoder.n_models)
    if readout.mode == "joint":
        return {slot: [slot] for slot in models}
    if readout.mode == "single":
        return {model: [model]}
    shared = readout.shared_slots(list(crosscoder.model_names), model)
    return {source: sorted(shared) if source == model else [source]
            for source in models if source == model or source not in shared}  # fmt: skip


def _weights(crosscoder: Crosscoder, sources: dict[int, list[int]]) -> Float[Tensor, "inputs d_sae"]:
    """Encoders of the sources side by side, those of slots that get the same activation added up."""
    blocks = [sum(crosscoder.encoder_of(slot).detach() for slot in slots) for slots in sources.values()]
    return torch.cat([torch.as_tensor(block) for block in blocks], dim=1).T
