"""Sums over rows from which every statistic of a latent is computed: one pass, float64, mergeable.

Two `LatentSums` over disjoint rows merge into the sums over their union, so that parts of a store can be read by
different processes. Only sums, counts and maxima are kept, never means.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.dictionary.folded_encoder import AllReadouts


@dataclass
class LatentSums:
    """Sums over rows, all float64; ``read`` is the joint read-out first, then each model's own.

    Attributes:
        n_rows: Rows read.
        active: How often a read-out is above zero.
        total: Sum of the read-out.
        square: Sum of its square.
        largest: Largest value.
        cross: Sum of the product of two models' read-outs.
        dot_error: Sum of f ⟨W_dec[k, owner], x_m − x̂_m⟩, in scaled units.
        dot_reconstruction: Sum of f ⟨W_dec[k, owner], Σ_j f_j W_dec[j, m]⟩, in scaled units, without the bias.
    """

    n_rows: int
    active: Float[Tensor, "read d_sae"]
    total: Float[Tensor, "read d_sae"]
    square: Float[Tensor, "read d_sae"]
    largest: Float[Tensor, "read d_sae"]
    cross: Float[Tensor, "model model d_sae"]
    dot_error: Float[Tensor, "model model d_sae"]
    dot_reconstruction: Float[Tensor, "model model d_sae"]

    @classmethod
    def zeros(cls, n_models: int, d_sae: int, device: torch.device | str = "cpu") -> "LatentSums":
        """Sums over no rows."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        reads = {name: torch.zeros(n_models + 1, d_sae, **options) for name in _READS}
        pairs = {name: torch.zeros(n_models, n_models, d_sae, **options) for name in _PAIRS}
        return cls(n_rows=0, **reads, **pairs)

    @property
    def f_square(self) -> Float[Tensor, " d_sae"]:
        """Sum of f² under the joint read-out."""
        return self.square[0]

    def merge(self, other: "LatentSums") -> "LatentSums":
        """The sums over the rows of both, which must be disjoint and of one crosscoder."""
        if self.active.shape != other.active.shape:
            raise ValueError(f"sums of shapes {tuple(self.active.shape)} and {tuple(other.active.shape)} cannot merge")
        merged = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "largest"
        }
        return LatentSums(**merged, largest=torch.maximum(self.largest, other.largest))

    @torch.no_grad()
    def update(self, encoder: AllReadouts, x: Float[Tensor, "batch model d_model"]) -> "ActiveEntries":
        """Add a batch of raw activations; returns what is active in the joint read-out.

        Beside the encoder only active entries are touched, so that a batch costs little more than encoding it.
        """
        acts = encoder.encode(x)
        joint = ActiveEntries.of(acts[0])
        self.n_rows += len(x)
        self._add_read(0, joint)
        same = encoder.same_as_joint
        entries = [joint if same[model] else ActiveEntries.of(read) for model, read in enumerate(acts[1:])]
        for model, active in enumerate(entries):
            self._add_read(model + 1, active)
            self.cross[model, model] += active.sum_by_latent(active.value.square())
            for other in range(model + 1, len(entries)):
                product = active.sum_by_latent(active.value * acts[other + 1].view(-1)[active.place].double())
                self.cross[model, other] += product
                self.cross[other, model] += product
        self._add_latent_scaling(encoder, x, joint)
        return joint

    def _add_read(self, index: int, active: "ActiveEntries") -> None:
        self.active[index] += active.sum_by_latent(torch.ones_like(active.value))
        self.total[index] += active.sum_by_latent(active.value)
        self.square[index] += active.sum_by_latent(active.value.square())
        self.largest[index].scatter_reduce_(0, active.latent, active.value, "amax")

    def _add_latent_scaling(self, encoder: AllReadouts, x: Tensor, active: "ActiveEntries") -> None:
        """All models and both targets go through one sparse product each way."""
        acts, decoder = active.matrix(len(x)), encoder.decoder
        targets = torch.empty(len(x), 2, *decoder.shape[1:], dtype=decoder.dtype, device=x.device)
        error, reconstruction = targets[:, 0], targets[:, 1]
        reconstruction.copy_(torch.sparse.mm(acts, decoder.flatten(1)).unflatten(1, decoder.shape[1:]))
        torch.div(x.to(decoder.dtype), encoder.scale.unsqueeze(1), out=error)
        error -= reconstruction
        error -= encoder.crosscoder.b_dec.detach().to(decoder.dtype)
        pulled = torch.sparse.mm(acts.t(), targets.flatten(1)).unflatten(1, targets.shape[1:])
        dots = einsum(pulled, decoder, "d_sae target model d_model, d_sae owner d_model -> target owner model d_sae")
        self.dot_error += dots[0]
        self.dot_reconstruction += dots[1]


_READS = ("active", "total", "square", "largest")
_PAIRS = ("cross", "dot_error", "dot_reconstruction")


@dataclass(frozen=True)
class ActiveEntries:
    """Latent activations above zero: place in the flat batch, row in the batch, latent, value in float64."""

    place: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    latent: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    d_sae: int

    @classmethod
    def of(cls, acts: Float[Tensor, "batch d_sae"]) -> "ActiveEntries":
        """The active entries of a batch."""
        flat = acts.contiguous().view(-1)
        active = flat > 0
        # NumPy finds them in a third of the time.
        place = active.nonzero().squeeze(1) if active.is_cuda else torch.from_numpy(np.flatnonzero(active.numpy()))
        row = place // acts.shape[1]
        return cls(place, row, place - row * acts.shape[1], flat[place].double(), acts.shape[1])

    def sum_by_latent(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " d_sae"]:
        """Sum of ``values`` over the entries of each latent."""
        return torch.zeros(self.d_sae, dtype=values.dtype, device=values.device).index_add_(0, self.latent, values)

    def matrix(self, n_rows: int) -> Tensor:
        """The same as a sparse ``[batch d_sae]`` matrix."""
        indices = torch.stack([self.row, self.latent])
        return torch.sparse_coo_tensor(
            indices, self.value, (n_rows, self.d_sae), is_coalesced=True, check_invariants=False
        )
