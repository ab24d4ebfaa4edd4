"""The lab's five skills: level 1 of one family each, with an opening word of their own and with wrong answers."""

import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mechprobe.evals.skills.calculation import sums
from mechprobe.evals.skills.calculation.sums import Sum
from mechprobe.evals.skills.diagnostic import machine_claims
from mechprobe.evals.skills.diagnostic.machine_claims import Claim
from mechprobe.evals.skills.enumeration import digits_above
from mechprobe.evals.skills.enumeration.digits_above import BOUNDS, Count
from mechprobe.evals.skills.fact_retrieval import lab_world
from mechprobe.evals.skills.fact_retrieval.lab_world import ATTRIBUTES, Chain, sorted_names, world
from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import ANSWER_MARKER, direct_response
from mechprobe.evals.skills.simulation import digit_machine
from mechprobe.evals.skills.simulation.digit_machine import OPERATIONS, Run, states

__all__ = ["Chain", "Claim", "Count", "LabSkill", "Run", "Sum", "single_facts", "states", "world"]


class LabSkill(ABC):
    """A skill of the lab: problems of level 1 of one family.

    Attributes:
        family: The family.
        own_marker: Word that opens a worked response in the rendering with one marker per skill.
        capacity: Number of different prompts.
    """

    family: ClassVar[Family]
    own_marker: ClassVar[str]
    capacity: ClassVar[int]

    @property
    def name(self) -> str:
        """Name of the skill."""
        return self.family.skill

    def draw(self, rng: random.Random) -> Any:
        """Draw the parameters of one problem."""
        return self.family.draw(rng, 1)

    def prompt(self, problem: Any) -> str:
        """Write the question."""
        return self.family.compact(problem)

    def answer(self, problem: Any) -> str:
        """Compute the right answer."""
        return self.family.answer(problem)

    def steps(self, problem: Any) -> str:
        """Write the worked steps, without marker and answer."""
        return self.family.scratch(problem)

    @abstractmethod
    def wrong_answer(self, problem: Any, rng: random.Random) -> str:
        """Draw a wrong answer in the same format."""


class Calculation(LabSkill):
    """`CALC 47+85?` -> `THINK 7+5=12;4+8+1=13 ANS 132`: units first, then tens with the carry."""

    family, own_marker = sums.FAMILY, "THINK"
    capacity = 90 * 99 + sum(range(10, 100))

    def off_policy_trace(self, problem: Sum) -> str:
        """Write the steps in a style that is absent from the base model's training data.

        Each column states the digit it leaves (`>`), and the inverse operation checks the result:
        `SO 4+2=6>6;6+0+0=6>6;CHECK 66-2=64;ANS 66`.
        """
        ((units, digit), (tens, _)), result = sums.columns(problem), self.answer(problem)
        check = f"{result}{'-' if problem.sign == '+' else '+'}{problem.b}={problem.a}"
        return f"SO {units}>{digit};{tens}>{tens.rpartition('=')[2]};CHECK {check};{ANSWER_MARKER} {result}"

    def wrong_answer(self, problem: Sum, rng: random.Random) -> str:
        """Draw an answer that differs by one, two, ten or eleven."""
        right = int(self.answer(problem))
        misses = [right + d for d in (-11, -10, -2, -1, 1, 2, 10, 11) if right + d >= 0]
        return str(rng.choice(misses))


class FactRetrieval(LabSkill):
    """`FACT su PAL HOME?` -> `THINK go;of ANS of`: the pal of su is go, the home of go is of."""

    family, own_marker = lab_world.FAMILY, "RECALL"
    capacity = lab_world.FAMILY.capacity(1)

    def wrong_answer(self, problem: Chain, rng: random.Random) -> str:
        """Draw another entity or another value."""
        right, (entities, values) = self.answer(problem), sorted_names()
        names = values if problem.relations[-1] in ATTRIBUTES else entities
        return rng.choice([name for name in names if name != right])


def single_facts() -> list[tuple[str, str]]:
    """Every question about a single fact with its direct response, e.g. `FACT su PAL?` and `ANS go`."""
    skill, chains = FactRetrieval(), [Chain(entity, (relation,)) for entity, relation in sorted(world())]
    return [(skill.prompt(chain), direct_response(skill.answer(chain))) for chain in chains]


class Simulation(LabSkill):
    """`SIM 7ntnt?` -> `THINK 2450 ANS 0`: every state, then the last one."""

    family, own_marker = digit_machine.FAMILY, "RUN"
    capacity = digit_machine.FAMILY.capacity(1)

    def wrong_answer(self, problem: Run, rng: random.Random) -> str:
        """Draw another digit."""
        return rng.choice([digit for digit in "0123456789" if digit != self.answer(problem)])


class Enumeration(LabSkill):
    """`ENUM 6:2421948924?` -> `THINK 989 ANS 3`: the digits above the bound, then how many."""

    family, own_marker = digits_above.FAMILY, "LIST"
    capacity = len(BOUNDS) * 10 ** digits_above.N_DIGITS[0]

    def wrong_answer(self, problem: Count, rng: random.Random) -> str:
        """Draw a count that differs by one or two."""
        right = int(self.answer(problem))
        return str(rng.choice([right + d for d in (-2, -1, 1, 2) if 0 <= right + d <= len(problem.digits)]))


class Diagnostic(LabSkill):
    """`DIAG tiit:24561?` -> `THINK 4562 ANS 4`: rerun the machine up to the first difference, and give its step."""

    family, own_marker = machine_claims.FAMILY, "TRACE"
    capacity = 10 * len(OPERATIONS) ** 4 * 4 * 9

    def wrong_answer(self, problem: Claim, rng: random.Random) -> str:
        """Draw another step."""
        steps = map(str, range(1, len(problem.operations) + 1))
        return rng.choice([step for step in steps if step != self.answer(problem)])
