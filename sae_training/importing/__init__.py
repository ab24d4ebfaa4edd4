"""Dictionaries that others published: crosscoders become a `Crosscoder`, SAEs of one model a `SingleSae`.

Only tensors and JSON are read; no file is unpickled. What cannot be represented exactly is refused in one sentence.
"""

from __future__ import annotations

from sae_training.importing.blocks import block_crosscoder
from sae_training.importing.crosscoders import FORMATS, import_crosscoder, read_published
from sae_training.importing.published import PublishedCrosscoder
from sae_training.importing.saelens import import_sae
from sae_training.importing.single_sae import SaeMetrics, SingleSae

__all__ = [
    "FORMATS",
    "PublishedCrosscoder",
    "SaeMetrics",
    "SingleSae",
    "block_crosscoder",
    "import_crosscoder",
    "import_sae",
    "read_published",
]
