"""Behaviour: tasks, scorers, generation and outcomes."""
