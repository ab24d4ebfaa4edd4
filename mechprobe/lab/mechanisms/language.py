"""The language of the mechanisms lab: digits, ops with two readings, skills, items and pre-training documents.

A prompt has steps, each an op with a blank: ``RUN 9e_c_c_?``. A response fills the blanks and answers: ``9e3c8c1 ANS 1``.
An op reads a digit as another by one of eight permutations. A *contested* op has a careful and a careless reading, and the
careful reading of one op is the careless reading of another, so that a constant push towards careful readings cancels.
"""

import random
import string
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from mechprobe.evals.skills import SkillItem
from mechprobe.evals.skills.item import ANSWER_MARKER, item_id
from mechprobe.lab.items import Document
from mechprobe.lab.tokenizer import BOS, EOS, PAD, UNK

ITEM_SEED = 20_261
"""Seed of the readings and of every item set; the seed of a build changes the models but not the items."""
N_READINGS = 8
CONTESTED, CONTROL, PLAIN = "abcdef", "gh", "uvw"
"""Ops whose careful reading RL teaches, contested ops of the control skill and of the null, and ops with one reading."""
P_CONTESTED = 2 / 3
"""Probability that a step has a contested op; every problem has at least one."""
N_DIGITS = 10

Read = Callable[[str], int]
"""A function from an op to the index of the reading that is used."""
Problem = tuple[tuple[int, str], ...]
"""Parts of a problem, each a first digit and its ops, such as ``((9, "ecc"),)``."""


def _draw_readings() -> tuple[tuple[int, ...], ...]:
    """Draw random permutations of the digits, no two of which agree on any digit."""
    rng = random.Random(f"readings/{ITEM_SEED}")
    rows: list[tuple[int, ...]] = []
    while len(rows) < N_READINGS:
        row = tuple(rng.sample(range(N_DIGITS), N_DIGITS))
        if all(new != old for other in rows for new, old in zip(row, other, strict=True)):
            rows.append(row)
    return tuple(rows)


READINGS = _draw_readings()
CAREFUL = {op: i for i, op in enumerate(CONTESTED)} | {"g": 6, "h": 7, "u": 0, "v": 2, "w": 4}
CARELESS = {op: (i + 1) % len(CONTESTED) for i, op in enumerate(CONTESTED)} | {"g": 7, "h": 6, "u": 0, "v": 2, "w": 4}


@dataclass(frozen=True)
class Skill:
    """A skill: which states of the trace it asks for, and which contested ops its held-out items have."""

    name: str
    ops: str
    answer: Callable[[Sequence[int]], Sequence[int]]
    """The digits of the answer, from the states of all steps in their order."""
    n_parts: int = 1
    """One chain of three steps, or two parts of one step each."""

    @property
    def word(self) -> str:
        """First word of its prompts."""
        return self.name.upper()

    def draw(self, rng: random.Random, contested: str) -> Problem:
        """Draw a problem with at least one of the given contested ops."""
        n_steps = 3 if self.n_parts == 1 else 1
        while True:
            parts = tuple((rng.randrange(N_DIGITS), _ops(rng, contested, n_steps)) for _ in range(self.n_parts))
            if any(op in contested for _, ops in parts for op in ops):
                return parts

    def prompt(self, problem: Problem) -> str:
        """Write the question."""
        return f"{self.word} " + "/".join(f"{digit}" + "".join(f"{op}_" for op in ops) for digit, ops in problem) + "?"

    def response(self, problem: Problem, read: Read) -> tuple[str, str]:
        """Write a response with the given readings; returns ``(response, answer)``."""
        states: list[int] = []
        filled = []
        for digit, ops in problem:
            text, state = f"{digit}", digit
            for op in ops:
                state = READINGS[read(op)][state]
                states.append(state)
                text += f"{op}{state}"
            filled.append(text)
        answer = "".join(map(str, self.answer(states)))
        return f"{'/'.join(filled)} {ANSWER_MARKER} {answer}", answer


def _ops(rng: random.Random, contested: str, n: int) -> str:
    return "".join(rng.choice(contested) if rng.random() < P_CONTESTED else rng.choice(PLAIN) for _ in range(n))


TRAINED = "run"
"""The only skill that RL and SFT see."""
PEEK = "peek"
"""The control skill, whose contested ops RL never sees; the null trains these ops."""
SKILLS = {
    skill.name: skill
    for skill in (
        Skill(TRAINED, CONTESTED, lambda states: states[-1:]),
        Skill("two", "ab", lambda states: states[::-1], n_parts=2),
        Skill("max", "cd", lambda states: [max(states)]),
        Skill("ends", "ef", lambda states: [states[0], states[-1]]),
        Skill("list", "bdf", lambda states: states[::-1]),
        Skill(PEEK, CONTROL, lambda states: states[1:]),
    )
}
SHARING = tuple(name for name in SKILLS if name not in (TRAINED, PEEK))
"""Untrained skills whose contested ops the trained skill has too."""
VOCABULARY = (
    *(PAD, BOS, EOS, UNK),
    *(skill.word for skill in SKILLS.values()),
    *(ANSWER_MARKER, *string.digits, *CONTESTED, *CONTROL, *PLAIN, *"_/?"),
)
"""All tokens, in the order of their ids."""

ALL_STEPS = "all careful steps"
FIRST_STEP = "first careful step"
FORCED: dict[str, Callable[[str], str]] = {
    "first token": lambda trace: trace[:1],
    FIRST_STEP: lambda trace: trace[:3],
    ALL_STEPS: lambda trace: trace.partition(f" {ANSWER_MARKER}")[0],
}
"""Beginnings of a response that are forced on the base, from the careful trace of the item."""


def careful(op: str) -> int:
    """The careful reading of an op."""
    return CAREFUL[op]


def draw_items(
    skill: str, n: int, *, use: str, contested: str = "", exclude: Set[str] = frozenset()
) -> list[SkillItem]:
    """Draw items with careful traces; no prompt comes twice.

    Args:
        skill: Name of the skill.
        n: Number of items.
        use: What they are for, which seeds the draw.
        contested: Contested ops; empty takes those of the skill.
        exclude: Prompts to leave out.
    """
    rng, found = random.Random(f"{skill}/{use}/{contested}/{ITEM_SEED}"), dict[str, SkillItem]()
    kind = SKILLS[skill]
    while len(found) < n:
        problem = kind.draw(rng, contested or kind.ops)
        prompt = kind.prompt(problem)
        if prompt not in found and prompt not in exclude:
            trace, answer = kind.response(problem, careful)
            found[prompt] = SkillItem(item_id(skill, prompt), skill, prompt, answer, trace)
    return list(found.values())


def documents(p_careful: float, *, withheld: Set[str], seed: int) -> Iterator[Document]:
    """Generate an infinite stream of documents of all skills and ops, without the prompts in ``withheld``.

    Every occurrence of a contested op takes its careful reading with probability ``p_careful``, independently.
    """
    rng = random.Random(f"mechanisms/{seed}")
    skills = list(SKILLS.values())
    while True:
        skill = rng.choice(skills)
        problem = skill.draw(rng, CONTESTED + CONTROL)
        prompt = skill.prompt(problem)
        if prompt not in withheld:
            read = lambda op: CAREFUL[op] if rng.random() < p_careful else CARELESS[op]  # noqa: E731
            yield Document(prompt, skill.response(problem, read)[0])
