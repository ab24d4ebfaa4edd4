"""Checks before work begins: of the installation, and of the models and inputs of a run."""
