"""Behaviour along post-training: skill profiles, their drift, and what it goes along with."""
