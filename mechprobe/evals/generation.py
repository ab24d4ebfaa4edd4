"""Generation, where the evaluations look for it; it lives with the models, so that the cache can use it too."""

from mechprobe.models.generation import Generated, encode_prompts, generate, left_pad, length_batches

__all__ = ["Generated", "encode_prompts", "generate", "left_pad", "length_batches"]
