"""Prompts, and the one token stream that every model of a family reads."""
