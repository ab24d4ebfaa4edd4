"""Scorers: they judge whether a response is right, wrong, or contains no answer (unparsed)."""
