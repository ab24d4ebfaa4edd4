"""The base class of scorers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mechprobe.types import OutcomeName


@dataclass(frozen=True)
class Scorer(ABC):
    """Judges a response as right, wrong or unparsed; `mechprobe.evals.scorers.parse.scorer` makes scorers.

    Attributes:
        spec: Its specification, as written on the command line.
    """

    spec: str

    @property
    def identity(self) -> str:
        """The text that represents the scorer in the fingerprint of its tasks."""
        return self.spec

    @abstractmethod
    def score(self, response: str, answer: str) -> OutcomeName:
        """The outcome of one response, given the right answer."""

    def check(self, answer: str) -> str | None:
        """Why no response could ever match this answer of the task file, as a clause; None if one could."""
        del answer
        return None
