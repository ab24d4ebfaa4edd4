"""What a variant decides: which features are active, in training and at inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "batch d_sae"]
Mask = Bool[Tensor, "batch d_sae"]
Threshold = Float[Tensor, " #d_sae"] | Float[Tensor, ""]


class ActivationVariant(ABC):
    """A rule over scores: score = relu(h_k) * sum_m ||W_dec[k, m]||_2; a feature of score 0 is never active.

    Variants hold no state and no tensors; what is learned (the threshold) belongs to the crosscoder.
    """

    name: ClassVar[str]
    has_fixed_k: ClassVar[bool] = True
    has_l1_penalty: ClassVar[bool] = False
    has_feature_threshold: ClassVar[bool] = False
    has_dead_feature_loss: ClassVar[bool] = False
    has_running_threshold: ClassVar[bool] = False

    def training_cut(self, scores: Scores, *, k: int, floor: float | None) -> Float[Tensor, "#batch 1"]:
        """The smallest score that is active in training, per row or one for the batch.

        Args:
            scores: may be negative where h is; those count as 0.
            k: features per token.
            floor: a guess below the cut that may speed up the search; the result does not depend on it.

        Raises:
            NotImplementedError: the variant has a threshold per feature in the place of a cut.
        """
        raise NotImplementedError(f"variant {self.name!r} has a threshold per feature, no cut over the scores")

    @abstractmethod
    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:
        """Which features are active at inference; a row's mask depends on that row alone."""
