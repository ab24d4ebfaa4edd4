"""Selection of the active latents of a training batch, exactly and with one matrix product."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.active import Active, DenseActive, SparseActive
from sae_training.kernels.backend import Backend
from sae_training.parallel import ALONE, Division
from sae_training.variants import L1, ActivationVariant, BatchTopK, TopK

# The cut changes by a few percent between steps, so this share of the last cut is usually below the next one.
_FLOOR_SHARE = 0.85


@dataclass
class Selector:
    """Selects the active latents of training batches.

    One product with the encoder rows, multiplied by the latent norms beforehand, gives the scores. Only scores above an
    estimate of the cut are then searched. The result is exact: if the estimate is too high, all scores are searched. On
    a GPU the cut is found among all scores without an estimate (`sae_training.kernels.selection`). Where several processes
    divide the scores, the cut is that over all of them.

    Attributes:
        variant: The rule of selection.
        k: Latents per token.
        backend: Implementation of the sparse steps.
        division: The processes that divide the training.
        last_cut: Cut of the latest batch. It speeds up the next search, and does not change its result.
    """

    variant: ActivationVariant
    k: int
    backend: Backend = "embedding_bag"
    division: Division = ALONE
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
        self,
        scores: Float[Tensor, "batch d_sae"],
        norm: Float[Tensor, " d_sae"],
        *,
        sparse: bool,
        n_rows: int | None = None,
    ) -> tuple[Active, Tensor | None]:
        """Select the active latents; ``n_rows`` is the number of rows of the whole batch where this is a part.

        Scores equal to the cut are all kept, except in sparse steps on a GPU. These keep the first of them, in the
        order of rows and then of latents, until there are k per token, so that the number of entries is known in
        advance.

        Returns:
            The active latents, and the cut for variants with one cut over the batch, else None.
        """
        n_rows = scores.shape[0] if n_rows is None else n_rows
        if sparse and self.backend == "triton":
            return self._select_on_device(scores, norm, n_rows)
        if isinstance(self.variant, TopK) or not sparse:
            return self._select_dense(scores, norm, n_rows, sparse=sparse)
        index, values, cut = self._above_cut(scores, self.k * n_rows)
        columns = torch.from_numpy(index % scores.shape[1])
        active = SparseActive.from_flat(
            torch.from_numpy(index), torch.from_numpy(values) / norm[columns], *scores.shape
        )
        return active, scores.new_full((), cut) if self.variant.has_running_threshold else None

    @property
    def has_sparse_step(self) -> bool:
        """Whether the backend supports the rule of this variant."""
        return self.backend == "embedding_bag" or isinstance(self.variant, (L1, BatchTopK, TopK))

    def cut(self, scores: Float[Tensor, "batch d_sae"], n_rows: int) -> Float[Tensor, "#batch 1"]:
        """The smallest active score over the scores of all processes: one per row, or one for the whole batch."""
        if self.division.by_latents and isinstance(self.variant, TopK):
            return self.division.cut(scores, self.k)
        if not self.division.alone and isinstance(self.variant, BatchTopK):
            return self.division.cut(scores.flatten()[None], self.k * n_rows)
        return self.variant.training_cut(scores, k=self.k)

    def _select_on_device(
        self, scores: Float[Tensor, "batch d_sae"], norm: Float[Tensor, " d_sae"], n_rows: int
    ) -> tuple[Active, Tensor | None]:
        from sae_training.kernels.active import TritonActive
        from sae_training.kernels.selection import all_positive, at_or_above, highest

        alone = self.division.alone
        match self.variant:
            case L1():
                return TritonActive.from_kept(all_positive(scores), norm), None
            case TopK() if self.division.by_latents:
                kept = at_or_above(scores, self.cut(scores, n_rows).flatten(), self.k, per_row=True)
            case TopK():
                kept = highest(scores, self.k, per_row=True)
            case BatchTopK() if not alone:
                kept = at_or_above(scores, self.cut(scores, n_rows).flatten(), self.k * n_rows, per_row=False)
            case BatchTopK():
                kept = highest(scores, self.k * scores.shape[0], per_row=False)
            case _:
                raise AssertionError(
                    f"has_sparse_step is False for {self.variant.name!r}: its steps are dense on a GPU"
                )
        return TritonActive.from_kept(kept, norm), kept.cut[0] if self.variant.has_running_threshold else None

    def _above_cut(self, scores: Float[Tensor, "batch d_sae"], n_kept: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Flat indices and scores of what one cut over the batch keeps, and the cut."""
        flat = scores.view(-1).numpy()
        if not self.variant.has_running_threshold:
            index = np.flatnonzero(flat > 0)
            return index, flat[index], 0.0
        floor = 0.0 if self.last_cut is None else max(0.0, self.last_cut * _FLOOR_SHARE)
        index = np.flatnonzero(flat > floor)
        sizes = self.division.numbers(index.size, scores.device)
        if sum(sizes) < n_kept and floor > 0.0:
            index = np.flatnonzero(flat > 0)
            sizes = self.division.numbers(index.size, scores.device)
        values = flat[index]
        if sum(sizes) < n_kept:  # there are fewer positive scores than n_kept, so all of them are active
            self.last_cut = None
            return index, values, 0.0
        candidates = self._candidates(values, min(n_kept, max(sizes)))
        place = candidates.size - n_kept
        self.last_cut = float(np.partition(candidates, place)[place])
        keep = values >= self.last_cut
        return index[keep], values[keep], self.last_cut

    def _candidates(self, values: np.ndarray, n: int) -> np.ndarray:
        """The ``n`` highest scores of each process, with zeros where it has fewer."""
        if self.division.alone:
            return values
        own = np.zeros(n, dtype=values.dtype)
        highest = values if values.size <= n else np.partition(values, values.size - n)[values.size - n :]
        own[: highest.size] = highest
        return self.division.gathered(torch.from_numpy(own)).flatten().numpy()

    def _select_dense(
        self, scores: Float[Tensor, "batch d_sae"], norm: Float[Tensor, " d_sae"], n_rows: int, *, sparse: bool
    ) -> tuple[Active, Tensor | None]:
        cut = self.cut(scores, n_rows)
        mask = (scores >= cut) & (scores > 0)
        shared_cut = cut.reshape(()).clamp(min=0.0) if self.variant.has_running_threshold else None
        if sparse:
            index = torch.from_numpy(np.flatnonzero(mask.view(-1).numpy()))
            values = scores.view(-1)[index] / norm[index % scores.shape[1]]
            return SparseActive.from_flat(index, values, *scores.shape), shared_cut
        return DenseActive(torch.where(mask, scores / norm, 0.0), mask), shared_cut
