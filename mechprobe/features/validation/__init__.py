"""Nulls and retraining: how far the feature table can be trusted."""
