"""Imports for the fork server of the tests that kill processes, frozen so that garbage collection skips them.

Those tests release a model after each use, which collects garbage. Going through the imported libraries would take longer
than the work itself.
"""

import gc

import transformer_lens.model_bridge  # noqa: F401
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401 - transformers imports lazily

gc.collect()
gc.freeze()
