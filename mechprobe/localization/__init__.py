"""Measure, for every site, how much of the gain a patch of the whole residual carries."""
