"""Rule-based scorers: a response and the right answer in, ``right``, ``wrong`` or ``unparsed`` out."""

import re
from dataclasses import dataclass

from mechprobe.errors import ConfigError
from mechprobe.types import OutcomeName

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Scorer:
    """A scorer; `scorer` makes one from its specification.

    Attributes:
        spec: ``exact``, ``numeric`` or ``final:<MARKER>``.
    """

    spec: str

    def score(self, response: str, answer: str) -> OutcomeName:
        """Score one response.

        Example:
            >>> scorer("final:ANS").score("THINK 7 + 5 ANS 1 2", "12")
            'right'
            >>> scorer("final:ANS").score("THINK 7 + 5", "12")
            'unparsed'
        """
        found = self.extract(response)
        if found is None:
            return "unparsed"
        return "right" if found == self.expected(answer) else "wrong"

    def extract(self, response: str) -> str | None:
        """The answer that a response gives, or None where there is none."""
        if self.spec == "exact":
            return response.strip() or None
        if self.spec == "numeric":
            return _last_number(response)
        return _after_last(response, self.spec.partition(":")[2].strip())

    def expected(self, answer: str) -> str:
        """The right answer in the form that `extract` gives."""
        if self.spec == "numeric":
            return _as_number(answer) or answer.strip()
        return answer.strip() if self.spec == "exact" else _without_blanks(answer)


def scorer(spec: str) -> Scorer:
    """The scorer of a specification.

    ``exact``: the whole response, stripped. ``numeric``: the last number in it, compared as a number.
    ``final:<MARKER>``: what follows the last MARKER, blanks removed.

    Raises:
        ConfigError: The specification is unknown.
    """
    kind, _, marker = spec.partition(":")
    if spec in ("exact", "numeric") or (kind == "final" and marker.strip()):
        return Scorer(spec)
    raise ConfigError(f"Scorer '{spec}' is unknown; write exact, numeric or final:<MARKER>.")


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _after_last(response: str, marker: str) -> str | None:
    _, found, tail = response.rpartition(marker)
    return (_without_blanks(tail) or None) if found else None


def _as_number(text: str) -> str | None:
    cleaned = text.replace(",", "").strip()
    try:
        value = float(cleaned)
    except ValueError:
        return None
    return str(int(value)) if value.is_integer() else repr(value)


def _last_number(response: str) -> str | None:
    numbers = _NUMBER.findall(response)
    return _as_number(numbers[-1]) if numbers else None
