"""What the server of forked processes imports once for all that these tests kill, and keeps out of their collections.

They release a model after each use, and a collection that goes through the imported libraries takes longer than the work.
"""

import gc

import transformer_lens.model_bridge  # noqa: F401
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - transformers imports a class when it is named

gc.collect()
gc.freeze()
