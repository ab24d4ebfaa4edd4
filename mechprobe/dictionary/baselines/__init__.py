"""SAEs of single models, trained on the same store for comparison."""
