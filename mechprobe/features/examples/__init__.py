"""Contexts, promoted tokens and labels of features."""
