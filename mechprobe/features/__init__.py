"""Describe every feature of a crosscoder: class, density, contexts, and checks against nulls."""
