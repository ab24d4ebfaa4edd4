r"""The scorer ``boxed``: the last ``\boxed{...}`` of a response against the answer, as mathematics, by math-verify."""

import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from mechprobe.errors import DependencyError
from mechprobe.evals.scorers.scorer import Scorer
from mechprobe.types import OutcomeName

SECONDS = 5
"""Longest time that math-verify may take to read or to compare one answer; what takes longer counts as not equal."""
_BOX = "\\boxed{"


@dataclass(frozen=True)
class BoxedScorer(Scorer):
    r"""Compares the content of the last ``\boxed{...}`` with the answer: ``\frac12``, ``0.5`` and ``1/2`` are equal.

    The answer is written bare, between dollar signs, or in a box of its own. Both are read by ``math_verify.parse`` and
    compared by ``math_verify.verify`` at their defaults. A response without a complete box is ``unparsed``.
    """

    def score(self, response: str, answer: str) -> OutcomeName:
        """Score one response."""
        content = last_boxed(response)
        if content is None or not content.strip():
            return "unparsed"
        library = _math_verify()
        found = library.parse(f"{_BOX}{content}}}", parsing_timeout=_seconds())
        gold = _gold(answer)
        equal = bool(found) and library.verify(gold, found, timeout_seconds=_seconds())
        return "right" if equal else "wrong"

    def check(self, answer: str) -> str | None:
        """Whether math-verify can read the answer."""
        return None if _gold(answer) else f"math-verify cannot read the answer {answer!r} as mathematics"


def boxed_scorer(spec: str) -> BoxedScorer:
    """The scorer; `DependencyError` where math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise DependencyError(
            "The scorer 'boxed' needs math-verify, which is not installed: pip install 'mechprobe[evals]'."
        )
    return BoxedScorer(spec)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces close, or None.

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
    marked = "$" in answer or _BOX in answer
    return _math_verify().parse(answer if marked else f"{_BOX}{answer}}}", parsing_timeout=_seconds())


def _math_verify() -> Any:
    import math_verify

    return math_verify


def _seconds() -> int | None:
    """math-verify's time limit; it is kept by a signal, which only the main thread can have."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None
