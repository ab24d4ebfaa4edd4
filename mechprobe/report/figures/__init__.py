"""Figures of the report. Each function takes plain values and returns a matplotlib figure."""
