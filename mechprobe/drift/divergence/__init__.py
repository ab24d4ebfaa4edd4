"""How far the next-token distributions and residual streams of tuned models are from those of base."""
