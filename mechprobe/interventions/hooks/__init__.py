"""Apply edits to a model while it runs, with sibling models on the same tokens."""
