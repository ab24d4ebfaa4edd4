"""Errors of sae_training.

SaeTrainingError (a ValueError)
    Raised for every mistake a caller can mend: a wrong shape, an unknown configuration key, a broken file.
    The message is one sentence that names the thing, the values seen, and the mend.
"""

from __future__ import annotations


class SaeTrainingError(ValueError):
    """A mistake of the caller that can be mended; the message says how."""
