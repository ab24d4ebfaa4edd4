"""What edits do to the host's predictions on unrelated text."""
