"""Nested dictionaries (Bussmann et al., arXiv 2503.17547): every prefix of the features has to reconstruct alone."""

from __future__ import annotations

from typing import ClassVar

from sae_training.variants.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    """Chooses as batchtopk does; the loss averages over the prefixes of ``CrosscoderConfig.prefix_ends``."""

    name: ClassVar[str] = "matryoshka"
