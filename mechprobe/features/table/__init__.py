"""The feature table: one row per feature."""
