"""The interface of a family: problems of one rule, drawn from a seed at five levels, with answers and worked steps."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from mechprobe.evals.scorers.final_answer import AnswerForm
from mechprobe.evals.skills.item import item_id

LEVELS = (1, 2, 3, 4, 5)
BEYOND = 6
"""The level of the split `test_out_param`: every knob is beyond the range of the five levels."""

_ASK: dict[str, str] = {
    "integer": "the answer as an integer",
    "number": "the answer as a number",
    "word": "the answer, one word,",
    "list": "the answers, in order and separated by commas,",
    "set": "the answers, separated by commas,",
    "expression": "the answer, simplified,",
    "diagnosis": "the answer",
}
"""What the last sentence of a chat prompt asks for, by form of the answer."""


class Family(ABC):
    """Problems of one rule. A problem is a `NamedTuple` of JSON values that holds all its parameters.

    Attributes:
        name: Unique name; with the hash of the content it makes the id of an item.
        skill: Its skill.
        domain: Its domain.
        version: Rises when the bytes of its items change.
        held_out: Whether the whole family belongs to the split `test_out_family`.
        keyword: Upper-case word that opens a compact prompt.
        alias: Upper-case word that opens it in the split `test_out_template` instead; empty where the vocabulary has none.
        words: Further upper-case words of its compact prompts and steps.
        answer_form: How the scorer compares two answers.
        max_answer_chars: Bound of the length of an answer at level 5.
        templates: Wordings of the chat prompt, with the names of `fields` in braces; the last one is held out.
        ask: What the last sentence of the chat prompt asks for; empty takes the phrase of the answer form.
        kinds: Kinds of problems whose shares are stated, each as often as it stands here; `draw` then takes a kind, too.
        no_trend: Why the work does not rise with the level; empty where it does.
    """

    name: ClassVar[str]
    skill: ClassVar[str]
    domain: ClassVar[str]
    version: ClassVar[int] = 1
    held_out: ClassVar[bool] = False
    keyword: ClassVar[str]
    alias: ClassVar[str] = ""
    words: ClassVar[tuple[str, ...]] = ()
    answer_form: ClassVar[AnswerForm]
    max_answer_chars: ClassVar[int]
    templates: ClassVar[tuple[str, ...]]
    ask: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = ()
    no_trend: ClassVar[str] = ""

    @abstractmethod
    def knobs(self, level: int) -> Mapping[str, int]:
        """Sizes of the problems of a level, 1 to 6; none falls with the level and one rises."""

    @abstractmethod
    def draw(self, rng: random.Random, level: int) -> Any:
        """Draw one problem. A problem of another level may come; `level_of` tells, and the draw is repeated."""

    @abstractmethod
    def level_of(self, problem: Any) -> int:
        """The level to which a problem belongs, from its content alone; 0 if to none."""

    @abstractmethod
    def compact(self, problem: Any) -> str:
        """The question in the closed vocabulary, at most 64 tokens together with the direct response."""

    @abstractmethod
    def answer(self, problem: Any) -> str:
        """The right answer."""

    @abstractmethod
    def verify(self, problem: Any) -> str:
        """The right answer by another algorithm."""

    @abstractmethod
    def steps(self, problem: Any) -> tuple[str, ...]:
        """The worked steps, in the closed vocabulary."""

    @abstractmethod
    def guesses(self, problem: Any) -> Sequence[str] | range | int:
        """The answers among which a random answerer draws evenly, or their number; the right one is among them."""

    def guess(self, problem: Any, rng: random.Random) -> str:
        """Draw one of the guesses; a family whose `guesses` is a number draws for itself."""
        space = self.guesses(problem)
        if isinstance(space, int):
            raise NotImplementedError(f"{self.name} gives the number of its guesses and must draw them itself")
        return str(rng.choice(space))

    def capacity(self, level: int) -> int | None:
        """The exact number of problems of a level if it is below some thousands, else None."""
        del level
        return None

    def fields(self, problem: Any) -> Mapping[str, Any]:
        """What the templates name."""
        return problem._asdict()

    def chat(self, problem: Any, template: int) -> str:
        """The question in words; template -1 is the held-out wording, also of the request for a box."""
        wording = self.templates[template].format(**self.fields(problem))
        ask = self.ask or _ASK[self.answer_form]
        if template % len(self.templates) == len(self.templates) - 1:
            return f"{wording}\nEnd your reply with {ask} inside \\boxed{{}}."
        return f"{wording}\nGive {ask} in \\boxed{{}}."

    def scratch(self, problem: Any) -> str:
        """The steps as they stand between the markers of a compact trace."""
        return ";".join(self.steps(problem))

    def chat_steps(self, problem: Any) -> str:
        """The steps as they stand in a chat response, one a line."""
        return "\n".join(self.steps(problem))

    def extras(self, problem: Any) -> Mapping[str, Any]:
        """Fields of the item that only some skills have: rule, rule_aliases, guided, pair, kind, step, corrected."""
        del problem
        return {}

    def content(self, problem: Any) -> str:
        """What the id hashes: the same for two problems only if they are one question."""
        return json.dumps(problem._asdict(), sort_keys=True, separators=(",", ":"))

    def work(self, problem: Any) -> int:
        """Work of a solver that writes every step: the characters of the steps. Its mean rises with the level."""
        return len(self.scratch(problem))

    def stream(self, level: int) -> str:
        """Text that, with the seed, seeds the draws of a level."""
        return f"{self.name}/{self.version}/{level}"

    def id(self, problem: Any) -> str:
        """The id of a problem, in every rendering, template and split."""
        return item_id(self.name, self.content(problem))

    def chance(self, problem: Any) -> float:
        """Probability that a random answerer is right."""
        space = self.guesses(problem)
        return 1 / (space if isinstance(space, int) else len(space))


def rung(ladder: Sequence[Any], value: Any) -> int:
    """The level whose knob has a value, from 1; 0 if none has."""
    return ladder.index(value) + 1 if value in ladder else 0


def set_text(members: Iterable[object]) -> str:
    """An answer of the form "set", e.g. `{2,3}`."""
    return "{" + ",".join(map(str, members)) + "}"
