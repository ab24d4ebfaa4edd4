"""The k highest scores of each token."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.variants.base import ActivationVariant, Mask, Scores, Threshold


class TopK(ActivationVariant):
    """Selects the k highest positive scores of each row, and all scores equal to the cut."""

    name: ClassVar[str] = "topk"
    has_dead_latent_loss: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The k-th highest score of each row."""
        return torch.topk(scores, k, dim=1, sorted=True).values[:, -1:]

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """The same rule as in training."""
        return (scores >= self.training_cut(scores, k=k)) & (scores > 0)
