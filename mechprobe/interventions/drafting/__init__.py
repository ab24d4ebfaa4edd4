"""Edited generation from drafts: known responses are checked under an edit, and only what differs is decoded."""
