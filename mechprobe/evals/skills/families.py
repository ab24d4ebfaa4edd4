"""The five skills: problems that are drawn from a seed, with their answers and worked steps."""

import functools
import random
import string
from typing import NamedTuple

from mechprobe.evals.skills.item import ANSWER_MARKER, direct_response


class Sum(NamedTuple):
    """`a + b` or `a - b` with a in 10-99, b in 1-99 and, for a difference, b <= a."""

    a: int
    sign: str
    b: int


class Calculation:
    """`CALC 47+85?` -> `THINK 7+5=12;4+8+1=13 ANS 132`: units first, then tens with the carry."""

    name = "calculation"
    own_marker = "THINK"
    capacity = 90 * 99 + sum(range(10, 100))

    def draw(self, rng: random.Random) -> Sum:
        """Draw a in 10-99 and b in 1-9 or 10-99 with equal odds; a difference is never negative."""
        a, sign = rng.randint(10, 99), rng.choice("+-")
        b = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 99)
        return Sum(max(a, b), sign, min(a, b)) if sign == "-" else Sum(a, sign, b)

    def prompt(self, problem: Sum) -> str:
        """Write the question, e.g. `CALC 47+85?`."""
        return f"CALC {problem.a}{problem.sign}{problem.b}?"

    def answer(self, problem: Sum) -> str:
        """Add or subtract."""
        return str(problem.a + problem.b if problem.sign == "+" else problem.a - problem.b)

    def steps(self, problem: Sum) -> str:
        """Write the two columns, e.g. `7+5=12;4+8+1=13`; a borrow shows as `13-7=6;8-4-1=3`."""
        units, tens, _ = _columns(problem)
        return f"{units};{tens}"

    def off_policy_trace(self, problem: Sum) -> str:
        """Write the steps in a style that is absent from the base model's training data.

        Each column states the digit it leaves (`>`), and the inverse operation checks the result:
        `SO 4+2=6>6;6+0+0=6>6;CHECK 66-2=64;ANS 66`.
        """
        (units, tens, digit), result = _columns(problem), self.answer(problem)
        check = f"{result}{'-' if problem.sign == '+' else '+'}{problem.b}={problem.a}"
        return f"SO {units}>{digit};{tens}>{tens.rpartition('=')[2]};CHECK {check};{ANSWER_MARKER} {result}"

    def wrong_answer(self, problem: Sum, rng: random.Random) -> str:
        """Draw an answer that differs by one, two, ten or eleven."""
        right = int(self.answer(problem))
        misses = [right + d for d in (-11, -10, -2, -1, 1, 2, 10, 11) if right + d >= 0]
        return str(rng.choice(misses))


def _columns(problem: Sum) -> tuple[str, str, int]:
    """The worked unit column, the worked tens column, and the unit digit of the result."""
    (tens_a, units_a), (tens_b, units_b) = divmod(problem.a, 10), divmod(problem.b, 10)
    if problem.sign == "+":
        total = units_a + units_b
        carry, digit = divmod(total, 10)
        return f"{units_a}+{units_b}={total}", f"{tens_a}+{tens_b}+{carry}={tens_a + tens_b + carry}", digit
    borrow = int(units_a < units_b)
    top = units_a + 10 * borrow
    digit = top - units_b
    return f"{top}-{units_b}={digit}", f"{tens_a}-{tens_b}-{borrow}={tens_a - tens_b - borrow}", digit


N_ENTITIES, N_VALUES = 80, 24
LINKS, ATTRIBUTES = ("BOSS", "PAL"), ("HOME", "FOOD")
WORLD_SEED = "mechprobe world 1"


class Chain(NamedTuple):
    """The attribute of the entity that a link leads to; if `attribute` is None, that entity itself."""

    entity: str
    link: str
    attribute: str | None


@functools.cache
def world() -> dict[tuple[str, str], str]:
    """The facts, `(entity, link) -> another entity` and `(entity, attribute) -> value`; identical in every process."""
    rng = random.Random(WORLD_SEED)
    names = sorted({x + y for x in string.ascii_lowercase for y in string.ascii_lowercase})
    rng.shuffle(names)
    entities, values = names[:N_ENTITIES], names[N_ENTITIES : N_ENTITIES + N_VALUES]
    facts: dict[tuple[str, str], str] = {}
    for entity in entities:
        for link in LINKS:
            facts[entity, link] = rng.choice([other for other in entities if other != entity])
        for attribute in ATTRIBUTES:
            facts[entity, attribute] = rng.choice(values)
    return facts


@functools.cache
def _sorted_names() -> tuple[list[str], list[str]]:
    """The sorted entities and the sorted values."""
    entities = {entity for entity, _ in world()}
    return sorted(entities), sorted({world()[entity, attribute] for entity in entities for attribute in ATTRIBUTES})


class FactRetrieval:
    """`FACT su PAL HOME?` -> `THINK go;of ANS of`: the pal of su is go, the home of go is of."""

    name = "fact_retrieval"
    own_marker = "RECALL"
    capacity = N_ENTITIES * len(LINKS) * len(ATTRIBUTES)

    def draw(self, rng: random.Random) -> Chain:
        """Draw an entity, a link and an attribute."""
        return Chain(rng.choice(_sorted_names()[0]), rng.choice(LINKS), rng.choice(ATTRIBUTES))

    def prompt(self, problem: Chain) -> str:
        """Write the question, e.g. `FACT su PAL HOME?` or, with one fact only, `FACT su PAL?`."""
        return "FACT " + " ".join(part for part in problem if part) + "?"

    def answer(self, problem: Chain) -> str:
        """Look up both facts."""
        middle = world()[problem.entity, problem.link]
        return middle if problem.attribute is None else world()[middle, problem.attribute]

    def steps(self, problem: Chain) -> str:
        """Write the intermediate entity and the answer, e.g. `go;of`."""
        return f"{world()[problem.entity, problem.link]};{self.answer(problem)}"

    def wrong_answer(self, problem: Chain, rng: random.Random) -> str:
        """Draw another entity or another value."""
        right, (entities, values) = self.answer(problem), _sorted_names()
        return rng.choice([name for name in (entities if problem.attribute is None else values) if name != right])


def single_facts() -> list[tuple[str, str]]:
    """Every question about a single fact with its direct response, e.g. `FACT su PAL?` and `ANS go`."""
    skill, chains = FactRetrieval(), [Chain(entity, relation, None) for entity, relation in sorted(world())]
    return [(skill.prompt(chain), direct_response(skill.answer(chain))) for chain in chains]


OPERATIONS, N_STEPS = "idtn", 4


class Run(NamedTuple):
    """A start digit and the operations to apply, in order."""

    start: int
    operations: str


def states(start: int, operations: str) -> list[int]:
    """List the digit after every operation modulo 10: i adds one, d subtracts one, t doubles, n gives 9 minus the digit."""
    result = []
    for operation in operations:
        start = {"i": start + 1, "d": start - 1, "t": start * 2, "n": 9 - start}[operation] % 10
        result.append(start)
    return result


class Simulation:
    """`SIM 7ntnt?` -> `THINK 2450 ANS 0`: every state, then the last one."""

    name = "simulation"
    own_marker = "RUN"
    capacity = 10 * len(OPERATIONS) ** N_STEPS

    def draw(self, rng: random.Random) -> Run:
        """Draw a start digit and four operations."""
        return Run(rng.randrange(10), "".join(rng.choices(OPERATIONS, k=N_STEPS)))

    def prompt(self, problem: Run) -> str:
        """Write the question, e.g. `SIM 7ntnt?`."""
        return f"SIM {problem.start}{problem.operations}?"

    def answer(self, problem: Run) -> str:
        """Run the machine."""
        return str(states(*problem)[-1])

    def steps(self, problem: Run) -> str:
        """Write the states, e.g. `2450`."""
        return "".join(map(str, states(*problem)))

    def wrong_answer(self, problem: Run, rng: random.Random) -> str:
        """Draw another digit."""
        return rng.choice([digit for digit in "0123456789" if digit != self.answer(problem)])


N_DIGITS, BOUNDS = 10, range(2, 8)


class Count(NamedTuple):
    """A bound and a row of digits."""

    bound: int
    digits: str


class Enumeration:
    """`ENUM 6:2421948924?` -> `THINK 989 ANS 3`: the digits above the bound, then how many."""

    name = "enumeration"
    own_marker = "LIST"
    capacity = len(BOUNDS) * 10**N_DIGITS

    def draw(self, rng: random.Random) -> Count:
        """Draw a bound in 2-7 and ten digits."""
        return Count(rng.choice(BOUNDS), "".join(rng.choices("0123456789", k=N_DIGITS)))

    def prompt(self, problem: Count) -> str:
        """Write the question, e.g. `ENUM 6:2421948924?`."""
        return f"ENUM {problem.bound}:{problem.digits}?"

    def answer(self, problem: Count) -> str:
        """Count the digits above the bound."""
        return str(len(self.steps(problem)))

    def steps(self, problem: Count) -> str:
        """Write the digits above the bound in order, e.g. `989`."""
        return "".join(digit for digit in problem.digits if int(digit) > problem.bound)

    def wrong_answer(self, problem: Count, rng: random.Random) -> str:
        """Draw a count that differs by one or two."""
        right = int(self.answer(problem))
        return str(rng.choice([right + d for d in (-2, -1, 1, 2) if 0 <= right + d <= N_DIGITS]))


class Claim(NamedTuple):
    """A start digit, operations and claimed states; exactly one state is wrong."""

    operations: str
    start: int
    claimed: tuple[int, ...]


class Diagnostic:
    """`DIAG tiit:24561?` -> `THINK 4562 ANS 4`: rerun the machine up to the first difference, and give its step.

    After the wrong step, the claimed run continues correctly from the wrong digit.
    """

    name = "diagnostic"
    own_marker = "TRACE"
    capacity = 10 * len(OPERATIONS) ** N_STEPS * N_STEPS * 9

    def draw(self, rng: random.Random) -> Claim:
        """Draw a run and the step (1-4) that is wrong."""
        operations = "".join(rng.choices(OPERATIONS, k=N_STEPS))
        start, step = rng.randrange(10), rng.randrange(N_STEPS)
        claimed = states(start, operations)
        claimed[step] = rng.choice([digit for digit in range(10) if digit != claimed[step]])
        claimed[step + 1 :] = states(claimed[step], operations[step + 1 :])
        return Claim(operations, start, tuple(claimed))

    def prompt(self, problem: Claim) -> str:
        """Write the question, e.g. `DIAG tiit:24561?` (the start digit, then the claimed states)."""
        return f"DIAG {problem.operations}:{problem.start}{''.join(map(str, problem.claimed))}?"

    def answer(self, problem: Claim) -> str:
        """Give the number of the first wrong step, from 1."""
        return str(len(self.steps(problem)))

    def steps(self, problem: Claim) -> str:
        """Write the true states up to and including the first that differs, e.g. `4562`."""
        true = states(problem.start, problem.operations)
        first = next(i for i, (t, c) in enumerate(zip(true, problem.claimed, strict=True)) if t != c)
        return "".join(map(str, true[: first + 1]))

    def wrong_answer(self, problem: Claim, rng: random.Random) -> str:
        """Draw another step."""
        return rng.choice([step for step in "1234" if step != self.answer(problem)])
