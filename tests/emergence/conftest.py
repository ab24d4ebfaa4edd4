"""The store, crosscoder and run of `tests.small_dictionaries` as fixtures."""

from tests.small_dictionaries import crosscoder, run, store

__all__ = ["crosscoder", "run", "store"]
