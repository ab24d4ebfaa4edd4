"""ReLU with an L1 penalty weighted by decoder norms: the preset of arXiv 2604.25011."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sae_training.variants.base import ActivationVariant, Mask, Scores, Threshold


class L1(ActivationVariant):
    """f = relu(h); penalty lambda * sum_k f_k sum_m ||W_dec[k, m]||_2."""

    name: ClassVar[str] = "l1"
    has_fixed_k: ClassVar[bool] = False
    has_l1_penalty: ClassVar[bool] = True

    def training_cut(self, scores: Scores, *, k: int) -> Float[Tensor, "#batch 1"]:  # noqa: ARG002
        """All positive scores are active."""
        return scores.new_zeros((1, 1))

    def inference_mask(self, scores: Scores, *, k: int, threshold: Threshold) -> Mask:  # noqa: ARG002
        """All positive scores are active."""
        return scores > 0
