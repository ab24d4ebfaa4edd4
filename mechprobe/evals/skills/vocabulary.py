"""The closed vocabulary of the compact rendering: an upper-case word is one token, and so is every other character."""

import re
import string
from collections.abc import Iterable

from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import ANSWER_MARKER, SHARED_MARKER

SYMBOLS = "?+-=;:>" + "<*/%^()[]{},.|_#!&"
"""All characters of compact texts that are no letters and no digits; the lab's come first."""
MAX_TOKENS = 64
"""Longest compact prompt together with its direct response, in tokens."""


def tokens(text: str) -> list[str]:
    """The tokens of a compact text.

    Example:
        >>> tokens("CALC 47+8?")
        ['CALC', '4', '7', '+', '8', '?']
    """
    return re.findall(r"[A-Z]+|[^A-Z\s]", text)


def vocabulary(families: Iterable[Family]) -> tuple[str, ...]:
    """All tokens of the compact texts of some families: words in order of appearance, then single characters."""
    words = (word for family in families for word in (family.keyword, family.alias, *family.words) if word)
    return (*dict.fromkeys((SHARED_MARKER, ANSWER_MARKER, *words)), *string.digits, *string.ascii_lowercase, *SYMBOLS)
