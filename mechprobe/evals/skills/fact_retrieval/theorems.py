"""Theorems of elementary mathematics, each with a question that it answers."""

import functools
import math
import random

from mechprobe.evals.skills.fact_retrieval.facts import Facts
from mechprobe.evals.skills.fact_retrieval.rules import Numbers, Rule

LONGEST_LEG = 24_000


@functools.cache
def _legs() -> dict[int, list[int]]:
    """Shorter or longer leg → the other legs that give a whole hypotenuse."""
    legs: dict[int, list[int]] = {}
    for m in range(2, 150):
        for n in range(1 + m % 2, m, 2):
            if math.gcd(m, n) == 1:
                a, b = m * m - n * n, 2 * m * n
                for k in range(1, LONGEST_LEG // max(a, b) + 1):
                    legs.setdefault(k * a, []).append(k * b)
                    legs.setdefault(k * b, []).append(k * a)
    return legs


def _triangle(rng: random.Random, low: int, high: int) -> Numbers:
    a = rng.choice(_legs_between(low, high))
    return a, rng.choice(_legs()[a])


@functools.cache
def _legs_between(low: int, high: int) -> list[int]:
    return [leg for leg in range(low, high + 1) if leg in _legs()]


def _hypotenuse_by_search(a: int, b: int) -> int:
    low, high = max(a, b), a + b
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**2 >= a**2 + b**2 else (middle + 1, high)
    return low


def _roots(rng: random.Random, low: int, high: int) -> Numbers:
    total = rng.randint(low, high)
    root = rng.randint(1, total - 1)
    return total, root * (total - root)


def _sum_of_roots(total: int, product: int) -> int:
    """Search the two roots of x² − total x + product."""
    root = next(x for x in range(1, product + 1) if x * x - total * x + product == 0)
    return root + product // root


def _polyhedron(rng: random.Random, low: int, high: int) -> Numbers:
    """Edges and vertices of a convex polyhedron; the conditions 3V <= 2E and 3F <= 2E suffice (Steinitz), but for 7 edges."""
    edges = rng.choice([e for e in range(max(6, low), high + 1) if e != 7])
    return edges, rng.randint(-(-edges // 3) + 2, 2 * edges // 3)


def _faces(edges: int, vertices: int) -> int:
    """Start from a tree of the edges, which bounds one face; every further edge splits a face."""
    return 1 + sum(1 for _ in range(edges - (vertices - 1)))


@functools.cache
def _primes(low: int, high: int) -> list[int]:
    return [n for n in range(low, high + 1) if all(n % d for d in range(2, math.isqrt(n) + 1))]


def _residue(rng: random.Random, low: int, high: int) -> Numbers:
    p = rng.choice(_primes(low, high))
    return p, rng.randint(2, p - 1), (p - 1) * rng.randint(1, 3) + rng.randint(0, 2)


def _power(p: int, a: int, exponent: int) -> int:
    value = 1
    for _ in range(exponent):
        value = value * a % p
    return value


def _regular_graph(rng: random.Random, low: int, high: int) -> Numbers:
    n = rng.randint(low, high)
    return n, rng.choice([k for k in range(2, min(n, 14)) if n * k % 2 == 0])


def _circulant_edges(n: int, k: int) -> int:
    """Edges of the graph that joins every vertex to its k // 2 next ones, and for odd k to the opposite one."""
    return sum(k // 2 for _ in range(n)) + (n // 2 if k % 2 else 0)


def _sets(rng: random.Random, low: int, high: int) -> Numbers:
    a, b = rng.randint(low, high), rng.randint(2, 20)
    return a, b, rng.randint(1, min(a, b))


def _lattice_rectangle(rng: random.Random, low: int, high: int) -> Numbers:
    half = rng.randint(-(-max(low, 4) // 2), high // 2)
    width = rng.randint(1, half - 1)
    return 2 * half, (width - 1) * (half - width - 1)


def _rectangle_area(boundary: int, inside: int) -> int:
    """The area of the rectangle with these numbers of lattice points."""
    half = boundary // 2
    return next(w * (half - w) for w in range(1, half) if (w - 1) * (half - w - 1) == inside)


def _triples(rng: random.Random, low: int, high: int) -> Numbers:
    return rng.randint(low, high), rng.randint(1, 9), rng.randint(1, 9)


def _legendre(n: int, p: int) -> int:
    total, power = 0, p
    while power <= n:
        total, power = total + n // power, power * p
    return total


def _exponent_in_product(n: int, p: int) -> int:
    total = 0
    for factor in range(1, n + 1):
        while factor % p == 0:
            total, factor = total + 1, factor // p
    return total


def _long_division(root: int, b: int, c: int) -> int:
    """Divide x² + b x + c by x − root: quotient x + (b + root)."""
    return c + root * (b + root)


class Theorems(Facts):
    """`THEOREM PYTHAGORAS HYPOT 6,8?`: 10."""

    name, domain = "theorems", "mathematics"
    keyword, alias, kind = "THEOREM", "RULE", "theorem or formula"
    rules = (
        Rule("the Pythagorean theorem", "PYTHAGORAS", "HYPOT", "The legs of a right triangle are {0} and {1} long. How long is its hypotenuse?",
             _triangle, lambda a, b: math.isqrt(a * a + b * b), _hypotenuse_by_search, "{0}*{0}+{1}*{1}={answer}*{answer}",
             ("Pythagorean theorem", "Pythagoras' theorem", "theorem of Pythagoras", "Pythagoras")),
        Rule("Vieta's formulas", "VIETA", "ROOTS", "What is the sum of the two roots of the equation x^2 - {0}x + {1} = 0, a double root counted twice?",
             _roots, lambda total, _product: total, _sum_of_roots, "SUM={answer}", ("Vieta's formula", "Vieta's theorem", "Viète's formulas", "Vieta")),
        Rule("Euler's polyhedron formula", "POLYHEDRON", "FACES", "A convex polyhedron has {0} edges and {1} vertices. How many faces does it have?",
             _polyhedron, lambda edges, vertices: 2 - vertices + edges, _faces, "2-{1}+{0}={answer}",
             ("Euler's formula", "Euler's formula for polyhedra", "Euler characteristic", "Euler's polyhedral formula")),
        Rule("Fermat's little theorem", "FERMAT", "POWMOD", "What is the remainder when {1}^{2} is divided by the prime {0}?",
             _residue, lambda p, a, exponent: pow(a, exponent % (p - 1), p), _power, "{2}:{0}-1={answer}", ("Fermat's theorem", "little theorem of Fermat", "Fermat")),
        Rule("the handshaking lemma", "HANDSHAKE", "EDGES", "Every one of the {0} vertices of a graph has {1} neighbours. How many edges does the graph have?",
             _regular_graph, lambda n, k: n * k // 2, _circulant_edges, "{0}*{1}:2={answer}",
             ("handshaking lemma", "handshake lemma", "handshaking theorem", "degree sum formula")),
        Rule("the inclusion-exclusion principle", "INCLUSION", "UNION", "A set has {0} elements, another has {1}, and {2} elements are in both. How many elements are in at least one of them?",
             _sets, lambda a, b, both: a + b - both, lambda a, b, both: len({*range(a)} | {*range(a - both, a - both + b)}), "{0}+{1}-{2}={answer}",
             ("inclusion-exclusion principle", "principle of inclusion and exclusion", "inclusion-exclusion")),
        Rule("Pick's theorem", "PICK", "AREA", "A simple polygon has its vertices on lattice points. {0} lattice points lie on its boundary and {1} inside. What is its area?",
             _lattice_rectangle, lambda boundary, inside: inside + boundary // 2 - 1, _rectangle_area, "{1}+{0}:2-1={answer}", ("Pick's formula", "theorem of Pick")),
        Rule("the polynomial remainder theorem", "REMAINDER", "POLYREM", "What is the remainder when x^2 + {1}x + {2} is divided by x - {0}?",
             _triples, lambda r, b, c: r * r + b * r + c, _long_division, "{0}*{0}+{1}*{0}+{2}={answer}", ("remainder theorem", "Bézout's little theorem")),
        Rule("Legendre's formula", "LEGENDRE", "EXPONENT", "What is the exponent of the prime {1} in the prime factorization of {0}! (the factorial of {0})?",
             lambda rng, low, high: (rng.randint(low, high), rng.choice((2, 3, 5, 7))), _legendre, _exponent_in_product, "{0}:{1}={answer}",
             ("de Polignac's formula", "Legendre's theorem")),
        Rule("the angle sum of polygons", "ANGLES", "DEGREES", "A convex polygon has {0} vertices. How large is the sum of its interior angles, in degrees?",
             lambda rng, low, high: (rng.randint(low, high),), lambda n: (n - 2) * 180, lambda n: n * 180 - 360, "({0}-2)*180={answer}",
             ("angle sum of polygons", "polygon angle sum theorem", "angle sum theorem", "sum of interior angles", "interior angle sum")),
        Rule("the sum of an arithmetic series", "ARITHMETIC", "SERIES", "What is the sum of the first {0} terms of the sequence that begins with {1} and grows by {2} with every term?",
             _triples, lambda n, first, step: n * (2 * first + (n - 1) * step) // 2, lambda n, first, step: sum(first + i * step for i in range(n)),
             "{0}*(2*{1}+({0}-1)*{2}):2={answer}", ("sum of an arithmetic series", "arithmetic series", "arithmetic progression", "arithmetic sum formula", "Gauss's formula")),
    )  # fmt: skip


FAMILY = Theorems()
