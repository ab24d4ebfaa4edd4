"""Nested dictionaries (Bussmann et al., arXiv 2503.17547): each prefix of the latents reconstructs by itself."""

from typing import ClassVar

from sae_training.variants.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    """Selects latents as batchtopk does; the loss averages over ``CrosscoderConfig.prefix_ends``."""

    name: ClassVar[str] = "matryoshka"
