"""Sums over rows from which every statistic of a latent is computed: one pass, float64, mergeable.

Two `LatentSums` over disjoint rows merge into the sums over their union, so that parts of a store can be read by
different processes. Only sums, counts and maxima are kept, never means.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.features.readout import Readout, model_scale
from sae_training import Crosscoder


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
        f_square: Sum of f² under the joint read-out, from the same products as the next two.
        dot_error: Sum of f ⟨W_dec[k, owner], x_m − x̂_m⟩, in scaled units.
        dot_reconstruction: Sum of f ⟨W_dec[k, owner], Σ_j f_j W_dec[j, m]⟩, in scaled units, without the bias.
    """

    n_rows: int
    active: Float[Tensor, "read d_sae"]
    total: Float[Tensor, "read d_sae"]
    square: Float[Tensor, "read d_sae"]
    largest: Float[Tensor, "read d_sae"]
    cross: Float[Tensor, "model model d_sae"]
    f_square: Float[Tensor, " d_sae"]
    dot_error: Float[Tensor, "model model d_sae"]
    dot_reconstruction: Float[Tensor, "model model d_sae"]

    @classmethod
    def zeros(cls, n_models: int, d_sae: int, device: torch.device | str = "cpu") -> "LatentSums":
        """Sums over no rows."""
        options = {"dtype": torch.float64, "device": device}
        reads = [torch.zeros(n_models + 1, d_sae, **options) for _ in range(4)]
        pairs = [torch.zeros(n_models, n_models, d_sae, **options) for _ in range(3)]
        return cls(0, *reads, pairs[0], torch.zeros(d_sae, **options), pairs[1], pairs[2])

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
    def update(
        self, crosscoder: Crosscoder, x: Float[Tensor, "batch model d_model"], readout: Readout
    ) -> Float[Tensor, "batch d_sae"]:
        """Add a batch of raw activations; returns its joint read-out."""
        joint = crosscoder.encode(x)
        names = crosscoder.model_names
        per_model = [readout.feature_acts(crosscoder, x, name) for name in names]
        self.n_rows += len(x)
        for row, acts in enumerate([joint, *per_model]):
            self._add_read(row, acts)
        for first in range(len(names)):
            for second in range(first, len(names)):
                product = (per_model[first].double() * per_model[second].double()).sum(0)
                self.cross[first, second] += product
                if second != first:
                    self.cross[second, first] += product
        self._add_latent_scaling(crosscoder, x, joint)
        return joint

    def _add_read(self, row: int, acts: Tensor) -> None:
        self.active[row] += (acts > 0).sum(0)
        self.total[row] += acts.sum(0, dtype=torch.float64)
        self.square[row] += acts.double().square().sum(0)
        self.largest[row] = torch.maximum(self.largest[row], acts.amax(0).double())

    def _add_latent_scaling(self, crosscoder: Crosscoder, x: Tensor, joint: Tensor) -> None:
        """Only the active entries are touched: a batch costs active entries times width, not latents times width."""
        n_models = len(crosscoder.model_names)
        acts = joint.double().to_sparse_coo()
        turned = acts.t().coalesce()
        self.f_square += joint.double().square().sum(0)
        scale = model_scale(crosscoder).double()
        decoders = [crosscoder.W_dec[:, model].double() for model in range(n_models)]
        for model in range(n_models):
            reconstruction = torch.sparse.mm(acts, decoders[model])
            error = x[:, model].double() / scale[model] - reconstruction - crosscoder.b_dec[model].double()
            with_error = torch.sparse.mm(turned, error)
            with_reconstruction = torch.sparse.mm(turned, reconstruction)
            for owner in range(n_models):
                self.dot_error[owner, model] += (with_error * decoders[owner]).sum(1)
                self.dot_reconstruction[owner, model] += (with_reconstruction * decoders[owner]).sum(1)
