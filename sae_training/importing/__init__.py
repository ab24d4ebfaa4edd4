"""Import of published dictionaries: crosscoders as a `Crosscoder`, SAEs of one model as a `SingleSae`.

The importers read only tensors and JSON, and unpickle no file. They refuse what they cannot represent exactly.
"""

from sae_training.importing.conversion import PublishedCrosscoder, block_crosscoder
from sae_training.importing.formats import FORMATS, import_crosscoder, read_published
from sae_training.importing.single_sae import SaeMetrics, SingleSae, import_sae

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
