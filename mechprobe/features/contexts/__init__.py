"""Contexts and promoted tokens of every live feature as Parquet files."""
