"""What changed from base to each tuned model and checkpoint: distributions, weights and behaviour (arXiv 2512.24063)."""
