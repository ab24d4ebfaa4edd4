"""Base of the variants, which decide what latents are active in training and at inference."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "batch d_sae"]
Mask = Bool[Tensor, "batch d_sae"]
Threshold = Float[Tensor, " #d_sae"] | Float[Tensor, ""]


class ActivationVariant(ABC):
    """A rule over scores relu(h_k) n_k with n_k = sum_m ||W_dec[k, m]||_2; a latent of score 0 is never active.

    Variants have no state: the crosscoder holds the threshold.
    """

    name: ClassVar[str]
    has_fixed_k: ClassVar[bool] = True
    has_l1_penalty: ClassVar[bool] = False
    has_latent_threshold: ClassVar[bool] = False
    has_dead_latent_loss: ClassVar[bool] = False
    has_running_threshold: ClassVar[bool] = False

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:
        """The smallest score that is active in training: one per row, or one for the batch.

        Args:
            scores: Scores; negative ones count as 0.
            k: Latents per token.

        Raises:
            NotImplementedError: The variant has a threshold per latent in place of a cut.
        """
        raise NotImplementedError(f"variant {self.name!r} has a threshold per latent, not a cut over the scores")

    @abstractmethod
    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:
        """The latents that are active at inference; the mask of a row depends only on that row."""
