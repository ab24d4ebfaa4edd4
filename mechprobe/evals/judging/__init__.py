"""Scorers that read finished responses: judges, and reward models."""
