"""Batchtopk (Bussmann et al., arXiv 2412.06410): the k * batch highest scores, and a threshold at inference."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.variants.base import ActivationVariant, Mask, Scores, Threshold


class BatchTopK(ActivationVariant):
    """Selects the k * batch highest positive scores of a batch, and all scores equal to the cut.

    At inference, a latent is active if its score exceeds the running mean of the training cuts.
    """

    name: ClassVar[str] = "batchtopk"
    has_dead_latent_loss: ClassVar[bool] = True
    has_running_threshold: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The (k * batch)-th highest score of the batch, exactly."""
        n_kept = k * scores.shape[0]
        if scores.device.type != "cpu":
            return torch.topk(scores.flatten(), n_kept, sorted=False).values.min().reshape(1, 1)
        flat = scores.detach().flatten().numpy()
        cut = np.partition(flat, flat.size - n_kept)[flat.size - n_kept]
        return scores.new_full((1, 1), float(cut))

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """Scores above the threshold, which is 0 before training."""
        return scores > threshold.to(scores.dtype)
