"""Resistance of networks of resistors in series and in parallel."""

import itertools
import random
from fractions import Fraction
from typing import Any, NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_RESISTORS = (2, 3, 4, 5, 6, 7)
"""Resistors of the network, by level."""
LARGEST = 30
"""Largest resistance in ohms."""
SERIES, PARALLEL = "+", "|"


class Circuit(NamedTuple):
    """A network: a resistance in ohms, or `+` (series) or `|` (parallel) with two networks."""

    network: Any


class Resistance(Family):
    """`OHM (3+5)|8?`: replace two parts by one until one is left."""

    name, skill, domain = "circuit", "calculation", "physics"
    keyword, alias = "OHM", "LOAD"
    answer_form = "expression"
    max_answer_chars = 23
    ask = "the resistance in ohms, as an integer or a reduced fraction,"
    templates = (
        "Resistors are connected as follows: {told}. What is the total resistance?",
        "Compute the equivalent resistance of this network: {told}.",
        "A circuit consists of {told}. Which single resistor could replace it?",
        "Between two terminals lies {told}. Find the resistance between the terminals.",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Resistors of the network."""
        return {"resistors": N_RESISTORS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Circuit:
        """Draw the shape of the network, its connections and its resistances."""
        return Circuit(_draw(rng, N_RESISTORS[level - 1]))

    def level_of(self, problem: Circuit) -> int:
        """From the number of resistors."""
        return rung(N_RESISTORS, len(_resistors(problem.network)))

    def compact(self, problem: Circuit) -> str:
        """Write the question, e.g. `OHM (3+5)|8?`."""
        return f"OHM {_text(problem.network)}?"

    def fields(self, problem: Circuit) -> dict[str, object]:
        """The network in words."""
        return {"told": _words(problem.network)}

    def answer(self, problem: Circuit) -> str:
        """Combine part by part."""
        return str(_resistance(problem.network))

    def verify(self, problem: Circuit) -> str:
        """Send a current of 1 A through the network and solve Kirchhoff's equations for the voltage."""
        wires: list[tuple[int, int, int]] = []
        fresh = itertools.count(2)
        _wire(problem.network, 0, 1, wires, fresh)
        return str(_voltage(wires, next(fresh)))

    def steps(self, problem: Circuit) -> tuple[str, ...]:
        """Write every combination, e.g. `3+5=8`, `8|8=4`."""
        return tuple(_combinations(problem.network))

    def guesses(self, problem: Circuit) -> tuple[str, ...]:
        """The resistances of all networks of this shape, whatever is in series or in parallel."""
        return tuple(str(value) for value in sorted(_all_values(problem.network)))


def _draw(rng: random.Random, n: int) -> Any:
    if n == 1:
        return rng.randint(1, LARGEST)
    n_left = rng.randint(1, n - 1)
    left, right = _draw(rng, n_left), _draw(rng, n - n_left)
    # Both connections are associative: on the right stands the other one, so that no network is drawn in two forms.
    kind = rng.choice((SERIES, PARALLEL)) if isinstance(right, int) else {SERIES: PARALLEL, PARALLEL: SERIES}[right[0]]
    return (kind, left, right)


def _resistors(network: Any) -> list[int]:
    return [network] if isinstance(network, int) else [*_resistors(network[1]), *_resistors(network[2])]


def _combine(kind: str, left: Fraction, right: Fraction) -> Fraction:
    return left + right if kind == SERIES else left * right / (left + right)


def _resistance(network: Any) -> Fraction:
    if isinstance(network, int):
        return Fraction(network)
    return _combine(network[0], _resistance(network[1]), _resistance(network[2]))


def _combinations(network: Any) -> list[str]:
    if isinstance(network, int):
        return []
    kind, left, right = network
    own = f"{_resistance(left)}{kind}{_resistance(right)}={_resistance(network)}"
    return [*_combinations(left), *_combinations(right), own]


def _all_values(network: Any) -> set[Fraction]:
    if isinstance(network, int):
        return {Fraction(network)}
    pairs = list(itertools.product(_all_values(network[1]), _all_values(network[2])))
    return {_combine(kind, left, right) for kind in (SERIES, PARALLEL) for left, right in pairs}


def _text(network: Any) -> str:
    if isinstance(network, int):
        return str(network)
    kind, *parts = network
    return kind.join(f"({_text(p)})" if isinstance(p, tuple) and p[0] != kind else _text(p) for p in parts)


def _words(network: Any) -> str:
    if isinstance(network, int):
        return f"a resistor of {network} ohms"
    name = "series" if network[0] == SERIES else "parallel"
    return f"[{_words(network[1])} in {name} with {_words(network[2])}]"


def _wire(network: Any, start: int, end: int, wires: list[tuple[int, int, int]], fresh: "itertools.count[int]") -> None:
    """Lay a network between two nodes, as resistors between nodes."""
    if isinstance(network, int):
        wires.append((start, end, network))
        return
    kind, left, right = network
    middle = next(fresh) if kind == SERIES else end
    _wire(left, start, middle, wires, fresh)
    _wire(right, middle if kind == SERIES else start, end, wires, fresh)


def _voltage(wires: list[tuple[int, int, int]], n_nodes: int) -> Fraction:
    """Potential of node 0 against node 1 when 1 A enters at node 0, by Gaussian elimination."""
    nodes = [node for node in range(n_nodes) if node != 1]
    rows = [[Fraction(0)] * len(nodes) + [Fraction(int(node == 0))] for node in nodes]
    for start, end, ohms in wires:
        for here, there in ((start, end), (end, start)):
            if here != 1:
                rows[nodes.index(here)][nodes.index(here)] += Fraction(1, ohms)
                if there != 1:
                    rows[nodes.index(here)][nodes.index(there)] -= Fraction(1, ohms)
    for i in reversed(range(len(nodes))):  # a grounded network is positive definite, so no pivot is 0
        for j in range(i):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [x - factor * y for x, y in zip(rows[j], rows[i], strict=True)]
    return rows[0][-1] / rows[0][0]


FAMILY = Resistance()
