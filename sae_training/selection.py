"""Selection of the active latents of a training batch, exactly and with one matrix product."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive
from sae_training.kernels.backend import Backend
from sae_training.variants import L1, ActivationVariant, BatchTopK, TopK

# The cut changes by a few percent between steps, so this share of the last cut is usually below the next one.
_FLOOR_SHARE = 0.85


@dataclass
class Selector:
    """Selects the active latents of training batches.

    One product with the encoder rows, multiplied by the latent norms beforehand, gives the scores. Only scores above an
    estimate of the cut are then searched. The result is exact: if the estimate is too high, all scores are searched. On
    a GPU the cut is found among all scores without an estimate (`sae_training.kernels.selection`).

    Attributes:
        variant: The rule of selection.
        k: Latents per token.
        backend: Implementation of the sparse steps.
        last_cut: Cut of the latest batch. It speeds up the next search, and does not change its result.
    """

    variant: ActivationVariant
    k: int
    backend: Backend = "embedding_bag"
    last_cut: float | None = None
    _scores: Tensor | None = field(default=None, repr=False)

    def scores(
        self,
        x: Float[Tensor, "batch d_all"],
        encoder: Float[Tensor, "d_sae d_all"],
        b_enc: Float[Tensor, " d_sae"],
        norm: Float[Tensor, " d_sae"],
        *,
        bfloat16: bool = False,
    ) -> Float[Tensor, "batch d_sae"]:
        """The scores h_k n_k with n_k = sum_m ||W_dec[k, m]||; in float32, the next call overwrites their memory."""
        if bfloat16:  # autocast rounds the operands of `@`, but not those of an addmm with `out`
            return torch.add(x @ (encoder * norm[:, None]).T, b_enc * norm)
        shape = (x.shape[0], encoder.shape[0])
        if self._scores is None or self._scores.shape != shape or self._scores.dtype != x.dtype:
            self._scores = torch.empty(shape, dtype=x.dtype, device=x.device)
        return torch.addmm(b_enc * norm, x, (encoder * norm[:, None]).T, out=self._scores)

    def select(
        self, scores: Float[Tensor, "batch d_sae"], norm: Float[Tensor, " d_sae"], *, sparse: bool
    ) -> tuple[Active, Tensor | None]:
        """Select the active latents.

        Scores equal to the cut are all kept, except in sparse steps on a GPU. These keep the first of them, in the
        order of rows and then of latents, until there are k per token, so that the number of entries is known in
        advance.

        Returns:
            The active latents, and the cut for variants with one cut over the batch, else None.
        """
        if sparse and self.backend == "triton":
            return self._select_on_device(scores, norm)
        if isinstance(self.variant, TopK) or not sparse:
            return self._select_dense(scores, norm, sparse=sparse)
        index, values, cut = self._above_cut(scores)
        columns = torch.from_numpy(index % scores.shape[1])
        active = SparseActive.from_flat(
            torch.from_numpy(index), torch.from_numpy(values) / norm[columns], *scores.shape
        )
        return active, scores.new_full((), cut) if self.variant.has_running_threshold else None

    @property
    def has_sparse_step(self) -> bool:
        """Whether the backend supports the rule of this variant."""
        return self.backend == "embedding_bag" or isinstance(self.variant, (L1, BatchTopK, TopK))

    def _select_on_device(
        self, scores: Float[Tensor, "batch d_sae"], norm: Float[Tensor, " d_sae"]
    ) -> tuple[Active, Tensor | None]:
        from sae_training.kernels.active import TritonActive
        from sae_training.kernels.selection import all_positive, highest

        match self.variant:
            case L1():
                return TritonActive.from_kept(all_positive(scores), norm), None
            case TopK():
                return TritonActive.from_kept(highest(scores, self.k, per_row=True), norm), None
            case BatchTopK():
                kept = highest(scores, self.k * scores.shape[0], per_row=False)
                return TritonActive.from_kept(kept, norm), kept.cut[0]
        raise AssertionError(f"has_sparse_step is False for {self.variant.name!r}: its steps are dense on a GPU")

    def _above_cut(self, scores: Float[Tensor, "batch d_sae"]) -> tuple[np.ndarray, np.ndarray, float]:
        """Flat indices and scores of what one cut over the batch keeps, and the cut."""
        flat = scores.view(-1).numpy()
        if not self.variant.has_running_threshold:
            index = np.flatnonzero(flat > 0)
            return index, flat[index], 0.0
        n_kept = self.k * scores.shape[0]
        floor = 0.0 if self.last_cut is None else max(0.0, self.last_cut * _FLOOR_SHARE)
        index = np.flatnonzero(flat > floor)
        if index.size < n_kept and floor > 0.0:
            index = np.flatnonzero(flat > 0)
        values = flat[index]
        if index.size < n_kept:  # there are fewer positive scores than n_kept, so all of them are active
            self.last_cut = None
            return index, values, 0.0
        place = values.size - n_kept
        self.last_cut = float(np.partition(values, place)[place])
        keep = values >= self.last_cut
        return index[keep], values[keep], self.last_cut

    def _select_dense(
        self, scores: Float[Tensor, "batch d_sae"], norm: Float[Tensor, " d_sae"], *, sparse: bool
    ) -> tuple[Active, Tensor | None]:
        cut = self.variant.training_cut(scores, k=self.k)
        mask = (scores >= cut) & (scores > 0)
        shared_cut = cut.reshape(()).clamp(min=0.0) if self.variant.has_running_threshold else None
        if sparse:
            index = torch.from_numpy(np.flatnonzero(mask.view(-1).numpy()))
            values = scores.view(-1)[index] / norm[index % scores.shape[1]]
            return SparseActive.from_flat(index, values, *scores.shape), shared_cut
        return DenseActive(torch.where(mask, scores / norm, 0.0), mask), shared_cut
