r"""The scorer ``boxed``: compares the last ``\boxed{...}`` of a response with the answer as mathematics, by math-verify."""

import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from mechprobe.errors import DependencyError
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.types import OutcomeName

SECONDS = 5
"""Time limit of math-verify for parsing or comparing one answer; a comparison that exceeds it counts as unequal."""
_BOX = "\\boxed{"


@dataclass(frozen=True)
class BoxedScorer(Scorer):
    r"""Compares the content of the last ``\boxed{...}`` with the answer: ``\frac12``, ``0.5`` and ``1/2`` are equal.

    The answer may be bare, between dollar signs, or in a box of its own. ``math_verify.parse`` parses both sides and
    ``math_verify.verify`` compares them, with their default settings. A response without a complete box is ``unparsed``.
    """

    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of one response."""
        content = last_boxed(response)
        if content is None or not content.strip():
            return "unparsed"
        found, gold = _parsed(f"{_BOX}{content}}}"), _gold(answer)
        return "right" if found and _math_verify().verify(gold, found, timeout_seconds=_seconds()) else "wrong"

    def check(self, answer: str) -> str | None:
        """Whether math-verify can parse the answer."""
        return None if _gold(answer) else f"math-verify cannot parse the answer {answer!r} as mathematics"


def boxed_scorer(spec: str) -> BoxedScorer:
    """The scorer; `DependencyError` if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise DependencyError(
            "The scorer 'boxed' needs math-verify, which is not installed: pip install 'mechprobe[evals]'."
        )
    return BoxedScorer(spec)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` with balanced braces, or None.

    Example:
        >>> last_boxed(r"so \boxed{\frac{1}{2}}, that is \boxed{0.5")
        '\\frac{1}{2}'
    """
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 1
        for place in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start + len(_BOX) : place]
        start = text.rfind(_BOX, 0, start)
    return None


@lru_cache(maxsize=65_536)
def _gold(answer: str) -> Any:
    return _parsed(answer if "$" in answer or _BOX in answer else f"{_BOX}{answer}}}")


def _parsed(text: str) -> Any:
    return _math_verify().parse(text, parsing_timeout=_seconds())


def _math_verify() -> Any:
    import math_verify

    return math_verify


def _seconds() -> int | None:
    """The time limit; None outside the main thread, because math-verify enforces it with a signal."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None
