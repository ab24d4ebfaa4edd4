"""Sums over rows from which every statistic of a feature is computed, in float64.

The sums over disjoint rows merge into the sums over their union, so different processes can read parts of a store. For this
reason only sums, counts and maxima are kept, never means.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.dictionary.readout import AllReadouts


@dataclass
class FeatureSums:
    """Sums over rows, in float64. The ``readout`` axis has the joint read-out first, then the own read-out of each model.

    Attributes:
        n_rows: Rows summed.
        active: Rows on which the feature is active.
        total: Sum of the activation f.
        square: Sum of f².
        largest: Largest f.
        cross: Sum of the product of two models' own activations.
        dot_error: Sum of f ⟨W_dec[k, owner], x_m − x̂_m⟩ with joint f, in scaled units.
        dot_reconstruction: Sum of f ⟨W_dec[k, owner], Σ_j f_j W_dec[j, m]⟩ with joint f, in scaled units, without the bias.
    """

    n_rows: int
    active: Float[Tensor, "readout d_sae"]
    total: Float[Tensor, "readout d_sae"]
    square: Float[Tensor, "readout d_sae"]
    largest: Float[Tensor, "readout d_sae"]
    cross: Float[Tensor, "model model d_sae"]
    dot_error: Float[Tensor, "model model d_sae"]
    dot_reconstruction: Float[Tensor, "model model d_sae"]

    @classmethod
    def zeros(cls, n_models: int, d_sae: int, device: torch.device | str = "cpu") -> "FeatureSums":
        """Sums over no rows."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        by_readout = {name: torch.zeros(n_models + 1, d_sae, **options) for name in _BY_READOUT}
        by_pair = {name: torch.zeros(n_models, n_models, d_sae, **options) for name in _BY_PAIR}
        return cls(n_rows=0, **by_readout, **by_pair)

    @property
    def f_square(self) -> Float[Tensor, " d_sae"]:
        """Sum of f² under the joint read-out."""
        return self.square[0]

    def merge(self, other: "FeatureSums") -> "FeatureSums":
        """The sums over the rows of both; the rows must be disjoint, and the crosscoder the same."""
        if self.active.shape != other.active.shape:
            raise ValueError(f"sums of shapes {tuple(self.active.shape)} and {tuple(other.active.shape)} cannot merge")
        merged: dict[str, Any] = {
            field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)
        }
        merged["largest"] = torch.maximum(self.largest, other.largest)
        return FeatureSums(**merged)

    @torch.no_grad()
    def update(self, encoder: AllReadouts, x: Float[Tensor, "batch model d_model"]) -> "ActiveEntries":
        """Add a batch of raw residuals, and return the active entries of the joint read-out.

        Everything behind the encoder touches active entries only, so a batch costs little more than its encoding.
        """
        acts = encoder.encode(x)
        joint = ActiveEntries.of(acts[0])
        self.n_rows += len(x)
        self._add_readout(0, joint)
        same = encoder.same_as_joint
        entries = [joint if same[model] else ActiveEntries.of(own) for model, own in enumerate(acts[1:])]
        for model, active in enumerate(entries):
            self._add_readout(model + 1, active)
            self.cross[model, model] += active.sum_by_feature(active.value.square())
            for other in range(model + 1, len(entries)):
                product = active.sum_by_feature(active.value * acts[other + 1].view(-1)[active.index].double())
                self.cross[model, other] += product
                self.cross[other, model] += product
        self._add_latent_scaling(encoder, x, joint)
        return joint

    def _add_readout(self, index: int, active: "ActiveEntries") -> None:
        self.active[index] += torch.bincount(active.feature, minlength=active.d_sae)
        self.total[index] += active.sum_by_feature(active.value)
        self.square[index] += active.sum_by_feature(active.value.square())
        self.largest[index].scatter_reduce_(0, active.feature, active.value, "amax")

    def _add_latent_scaling(self, encoder: AllReadouts, x: Tensor, active: "ActiveEntries") -> None:
        """Add both dot products of all models, with one sparse product to reconstruct and one to project."""
        acts, decoder = active.matrix(len(x)), encoder.decoder
        targets = torch.empty(len(x), 2, *decoder.shape[1:], dtype=decoder.dtype, device=x.device)
        error, reconstruction = targets[:, 0], targets[:, 1]
        reconstruction.copy_(torch.sparse.mm(acts, decoder.flatten(1)).unflatten(1, decoder.shape[1:]))
        target = encoder.crosscoder.unflatten(encoder.crosscoder.target(x))
        torch.div(target.to(decoder.dtype), encoder.scale.unsqueeze(1), out=error)
        error -= reconstruction
        error -= encoder.crosscoder.b_dec.detach().to(decoder.dtype)
        pulled = torch.sparse.mm(acts.t(), targets.flatten(1)).unflatten(1, targets.shape[1:])
        dots = einsum(pulled, decoder, "d_sae target model d_model, d_sae owner d_model -> target owner model d_sae")
        self.dot_error += dots[0]
        self.dot_reconstruction += dots[1]


_BY_READOUT = ("active", "total", "square", "largest")
_BY_PAIR = ("cross", "dot_error", "dot_reconstruction")


@dataclass(frozen=True)
class ActiveEntries:
    """The activations above zero of a batch, in float64; ``index`` is that of each entry in the flattened batch."""

    index: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    feature: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    d_sae: int

    @classmethod
    def of(cls, acts: Float[Tensor, "batch d_sae"]) -> "ActiveEntries":
        """The active entries of a batch."""
        flat = acts.contiguous().view(-1)
        active = flat > 0
        # On the CPU, NumPy takes a third of the time of torch.nonzero.
        index = active.nonzero().squeeze(1) if active.is_cuda else torch.from_numpy(np.flatnonzero(active.numpy()))
        row = index // acts.shape[1]
        return cls(index, row, index - row * acts.shape[1], flat[index].double(), acts.shape[1])

    def sum_by_feature(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " d_sae"]:
        """Sum of ``values`` over the entries of each feature."""
        return torch.zeros(self.d_sae, dtype=values.dtype, device=values.device).index_add_(0, self.feature, values)

    def matrix(self, n_rows: int) -> Tensor:
        """The entries as a sparse ``[batch d_sae]`` matrix."""
        indices, shape = torch.stack([self.row, self.feature]), (n_rows, self.d_sae)
        return torch.sparse_coo_tensor(indices, self.value, shape, is_coalesced=True, check_invariants=False)
