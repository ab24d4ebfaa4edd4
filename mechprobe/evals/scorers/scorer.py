"""What every scorer is: a response and the right answer in, ``right``, ``wrong`` or ``unparsed`` out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mechprobe.types import OutcomeName


@dataclass(frozen=True)
class Scorer(ABC):
    """Judges one response; `mechprobe.evals.scorers.parse.scorer` makes one.

    Attributes:
        spec: Its specification, as it is written on the command line.
    """

    spec: str

    @property
    def identity(self) -> str:
        """What stands for the scorer in the fingerprint of its tasks."""
        return self.spec

    @abstractmethod
    def score(self, response: str, answer: str) -> OutcomeName:
        """Score one response."""

    def check(self, answer: str) -> str | None:
        """What is wrong with an answer of the task file, so that no response could ever be right; None for nothing."""
        del answer
        return None
