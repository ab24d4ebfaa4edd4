"""A dense crosscoder with the formula of `crosscoder_learning`: one matrix product per model, and an un-squared loss.

This re-implements the published formula without copying code. With x [batch model d_model] and n_k = sum_m ||W_dec[k, m]||_2::

    h_k = sum_m <x_m, W_enc[m, :, k]> + b_enc_k      (a product per model, [batch model d_sae], then the sum)
    f = relu(h) where f_k n_k is among the k * batch highest of the batch, else 0
    x_hat_m = sum_k f_k W_dec[k, m] + b_dec_m        (all d_sae terms)
    loss = mean_b sum_m ||x_m - x_hat_m||_2 + 1/32 auxiliary loss

The auxiliary loss (Gao et al., arXiv 2406.04093) lets the d_model / 2 highest dead features reconstruct the residual, over
the residual's variance. Like the package, it normalizes per model, keeps a threshold and dead counters, and trains
with Adam and gradients clipped at norm 1. Where the formula leaves a choice open, the cheaper one is taken.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

AUX_WEIGHT = 1 / 32
DEAD_AFTER_TOKENS = 10_000_000


class DenseCrosscoder(nn.Module):
    """The dense crosscoder with its optimizer.

    Attributes:
        W_enc: ``[model d_model d_sae]``.
        W_dec: ``[d_sae model d_model]``.
    """

    tokens_since_fired: Tensor
    threshold: Tensor

    def __init__(
        self,
        W_enc: Float[Tensor, "model d_model d_sae"],
        W_dec: Float[Tensor, "d_sae model d_model"],
        k: int,
        lr: float,
    ) -> None:
        super().__init__()
        n_models, d_model, d_sae = W_enc.shape
        self.k = k
        self.W_enc = nn.Parameter(W_enc.detach().clone().contiguous())
        self.W_dec = nn.Parameter(W_dec.detach().clone().contiguous())
        self.b_enc = nn.Parameter(W_enc.new_zeros(d_sae))
        self.b_dec = nn.Parameter(W_enc.new_zeros(n_models, d_model))
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64, device=W_enc.device))
        self.register_buffer("threshold", W_enc.new_zeros(()))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def encode(
        self, x: Float[Tensor, "batch model d_model"]
    ) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, "batch d_sae"]]:
        """The chosen features, and all of them after the ReLU."""
        hidden_pre = torch.einsum("bld,ldf->blf", x, self.W_enc).sum(dim=1) + self.b_enc
        positive = torch.relu(hidden_pre)
        scores = positive * torch.linalg.vector_norm(self.W_dec, dim=2).sum(dim=1)
        chosen = torch.topk(scores.flatten(), self.k * len(x), sorted=False).indices
        kept = torch.zeros_like(scores).flatten().scatter_(0, chosen, 1.0).reshape(scores.shape)
        return positive * kept, positive

    def decode(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch model d_model"]:
        """Reconstruct the batch from all features."""
        return torch.einsum("bf,fld->bld", feature_acts, self.W_dec) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "batch model d_model"]) -> Float[Tensor, "batch model d_model"]:
        """Reconstruct the batch from the features that training would choose in it."""
        return self.decode(self.encode(x)[0])

    def loss(self, x: Float[Tensor, "batch model d_model"]) -> Float[Tensor, ""]:
        """Loss of a batch; also updates the counters of dead features."""
        feature_acts, positive = self.encode(x)
        error = x - self.decode(feature_acts)
        with torch.no_grad():
            fired = (feature_acts > 0).any(dim=0)
            self.tokens_since_fired += len(x)
            self.tokens_since_fired[fired] = 0
            self.threshold.lerp_(feature_acts[feature_acts > 0].min(), 0.001)
        loss = torch.linalg.vector_norm(error, dim=2).sum(dim=1).mean()
        return loss + AUX_WEIGHT * self._auxiliary(error.detach(), positive)

    def step(self, x: Float[Tensor, "batch model d_model"]) -> Float[Tensor, ""]:
        """Train on one batch; returns its loss."""
        loss = self.loss(x)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _auxiliary(
        self, residual: Float[Tensor, "batch model d_model"], positive: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, ""]:
        dead = self.tokens_since_fired >= DEAD_AFTER_TOKENS
        n_dead = int(dead.sum())
        if n_dead == 0:
            return residual.new_zeros(())
        n_taken = min(n_dead, self.W_enc.shape[1] // 2)
        values, indices = torch.where(dead, positive, -torch.inf).topk(n_taken, dim=1, sorted=False)
        feature_acts = torch.zeros_like(positive).scatter(1, indices, values)
        explained = torch.einsum("bf,fld->bld", feature_acts, self.W_dec)
        variance = (residual - residual.mean(dim=0)).square().sum(dim=(1, 2)).mean()
        return (residual - explained).square().sum(dim=(1, 2)).mean() / variance
