"""The interface of a skill: seeded problems, rendered as a prompt, an answer and a worked trace."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

ANSWER_MARKER = "ANS"
"""Word before every final answer; the scorer `final:ANS` extracts the text after the last one."""
SHARED_MARKER = "THINK"
"""Word that opens a worked response in the renderings with one marker for all skills."""


@dataclass(frozen=True, slots=True)
class SkillItem:
    """One graded question. A question has the same id in every draw; its trace is a worked response."""

    id: str
    skill: str
    prompt: str
    answer: str
    trace: str


@runtime_checkable
class Skill(Protocol):
    """A family of problems with one rule."""

    name: str
    own_marker: str
    """Word that opens a worked response in the rendering with one marker per skill."""
    capacity: int
    """Number of different prompts."""

    def draw(self, rng: random.Random) -> Any:
        """Draw the parameters of one problem."""
        ...

    def prompt(self, problem: Any) -> str:
        """Write the question."""
        ...

    def answer(self, problem: Any) -> str:
        """Compute the right answer."""
        ...

    def steps(self, problem: Any) -> str:
        """Write the worked steps, without marker and answer."""
        ...

    def wrong_answer(self, problem: Any, rng: random.Random) -> str:
        """Draw a wrong answer in the same format."""
        ...


def item_id(skill: str, prompt: str) -> str:
    """Name a question by its skill and the hash of its prompt: `simulation-33fe9449d8df`."""
    return f"{skill}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def direct_response(answer: str) -> str:
    """Write the response that gives the answer at once: `ANS 132`."""
    return f"{ANSWER_MARKER} {answer}"


def worked_response(marker: str, steps: str, answer: str) -> str:
    """Write the response that shows its steps first: `THINK 7+5=12;4+8+1=13 ANS 132`."""
    return " ".join(part for part in (marker, steps, ANSWER_MARKER, answer) if part)
