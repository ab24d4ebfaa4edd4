"""The rules that select active latents, one file each."""

from sae_training.variants.base import ActivationVariant
from sae_training.variants.batchtopk import BatchTopK
from sae_training.variants.jumprelu import JumpReLU
from sae_training.variants.l1 import L1
from sae_training.variants.matryoshka import Matryoshka
from sae_training.variants.topk import TopK

VARIANTS: dict[str, ActivationVariant] = {
    variant.name: variant for variant in (BatchTopK(), JumpReLU(), L1(), Matryoshka(), TopK())
}

__all__ = ["L1", "VARIANTS", "ActivationVariant", "BatchTopK", "JumpReLU", "TopK"]
