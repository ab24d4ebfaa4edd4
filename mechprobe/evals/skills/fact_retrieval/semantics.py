"""Rules of the language Python, each with an expression whose value it decides."""

import random

from mechprobe.evals.skills.fact_retrieval.facts import Facts
from mechprobe.evals.skills.fact_retrieval.rules import Numbers, Rule, pair


def _not_divisible(rng: random.Random, low: int, high: int) -> Numbers:
    n = rng.randint(low, high)
    return n, rng.choice([d for d in range(2, 13) if n % d])


def _below(rng: random.Random, low: int, high: int) -> Numbers:
    n = rng.randint(low, high)
    return n, rng.randint(1, n - 1)


def _beyond(rng: random.Random, low: int, high: int) -> Numbers:
    n = rng.randint(low, high)
    return n, rng.randint(0, n - 1), n + rng.randint(1, 9)


def _strides(rng: random.Random, low: int, high: int) -> Numbers:
    return rng.randint(low, high), rng.randint(0, 2), rng.randint(2, 9)


def _added_in_place(n: int, k: int) -> int:
    first = [0] * n
    second = first
    second.extend([1] * k)
    return len(first)


def _shifted(n: int, k: int) -> int:
    for _ in range(k):
        n += n
    return n


def _xor_by_digits(n: int, k: int) -> int:
    bits = zip(f"{n:016b}", f"{k:016b}", strict=True)
    return int("".join("1" if x != y else "0" for x, y in bits), 2)


class Semantics(Facts):
    """`PYTHON FLOOR DIVIDE 7,2?`: the value of -7 // 2, which is -4. The checks let Python evaluate the expression."""

    name, domain = "semantics", "coding"
    keyword, alias, kind = "PYTHON", "LANGUAGE", "rule of the language"
    rules = (
        Rule("floor division rounds down", "FLOOR", "DIVIDE", "What is the value of -{0} // {1} in Python?",
             _not_divisible, lambda n, d: -((n + d - 1) // d), lambda n, d: -n // d, "DOWN={answer}",
             ("floor division", "rounds toward negative infinity", "rounds towards negative infinity")),
        Rule("the remainder has the sign of the divisor", "MODULO", "REST", "What is the value of -{0} % {1} in Python?",
             _not_divisible, lambda n, d: d - n % d, lambda n, d: -n % d, "{1}-{0}%{1}={answer}",
             ("sign of the divisor", "modulo takes the sign of the divisor", "remainder takes the sign of the divisor")),
        Rule("int truncates toward zero", "TRUNCATE", "INT", "What is the value of int(-{0}.{1}) in Python?",
             pair(1, 9), lambda n, _d: -n, lambda n, d: int(float(f"-{n}.{d}")), "ZERO={answer}",
             ("truncates toward zero", "truncates towards zero", "truncation toward zero", "truncation towards zero")),
        Rule("round takes halves to the even number", "EVEN", "ROUND", "What is the value of round({0}.5) + {1} in Python?",
             pair(0, 9), lambda n, k: n + n % 2 + k, lambda n, k: round(n + 0.5) + k, "HALF+{1}={answer}",
             ("round half to even", "rounds half to even", "banker's rounding", "half to even", "rounding half to even")),
        Rule("the power binds before the minus sign", "PRECEDENCE", "POWER", "What is the value of -{0} ** 2 + {1} in Python?",
             pair(0, 9), lambda n, k: k - n * n, lambda n, k: -n ** 2 + k, "{1}-{0}*{0}={answer}",
             ("operator precedence", "precedence of the power operator", "exponentiation binds tighter than unary minus")),
        Rule("a range leaves out its stop value", "RANGE", "COUNT", "What is the value of len(range({1}, {0})) in Python?",
             _below, lambda n, a: n - a, lambda n, a: sum(1 for _ in range(a, n)), "{0}-{1}={answer}",
             ("range excludes its stop value", "range excludes the stop value", "half-open range", "stop value is excluded", "stop is exclusive")),
        Rule("slices are cut off at the length", "SLICE", "LENGTH", "What is the value of len(('x' * {0})[{1}:{2}]) in Python?",
             _beyond, lambda n, a, _b: n - a, lambda n, a, b: len(("x" * n)[a:b]), "{0}-{1}={answer}",
             ("slices are clamped", "slice bounds are clamped", "slice clamping", "out-of-range slices are clamped")),
        Rule("negative indices count from the end", "NEGATIVE", "INDEX", "What is the value of list(range({0}))[-{1}] in Python?",
             _below, lambda n, k: n - k, lambda n, k: list(range(n))[-k], "{0}-{1}={answer}",
             ("negative indexing", "negative index counts from the end", "negative indices")),
        Rule("a step takes every k-th element", "STEP", "STRIDE", "What is the value of len(list(range({0}))[{1}::{2}]) in Python?",
             _strides, lambda n, a, k: -((a - n) // k), lambda n, a, k: len(list(range(n))[a::k]), "({0}-{1}):{2}={answer}",
             ("slice step", "extended slicing", "step of a slice", "extended slice")),
        Rule("assignment binds a name to the same object", "ALIAS", "EXTEND", "What does this Python program print? a = [0] * {0}; b = a; b.extend([1] * {1}); print(len(a))",
             pair(1, 12), lambda n, k: n + k, _added_in_place, "{0}+{1}={answer}",
             ("same object", "aliasing", "assignment does not copy", "assignment binds names", "both names refer to the same list")),
        Rule("or returns the first true operand", "OR", "OPERAND", "What is the value of (0 or {0}) + {1} in Python?",
             pair(1, 12), lambda n, k: n + k, lambda n, k: (0 or n) + k, "{0}+{1}={answer}",
             ("or returns the first truthy operand", "short-circuit evaluation", "short circuit evaluation", "or returns an operand")),
        Rule("True counts as 1", "TRUE", "SUM", "What is the value of sum([True] * {0}) + {1} in Python?",
             pair(1, 12), lambda n, k: n + k, lambda n, k: sum([True] * n) + k, "{0}+{1}={answer}",
             ("bool is a subclass of int", "booleans are integers", "True equals 1", "True is 1")),
        Rule("a left shift doubles", "SHIFT", "LEFT", "What is the value of {0} << {1} in Python?",
             pair(1, 6), lambda n, k: n * 2**k, _shifted, "{0}*2*{1}={answer}", ("left shift", "shift multiplies by a power of two", "bit shift")),
        Rule("the caret is bitwise exclusive or", "XOR", "CARET", "What is the value of {0} ^ {1} in Python?",
             pair(1, 60), lambda n, k: n + k - 2 * (n & k), _xor_by_digits, "{0}:{1}={answer}", ("xor", "bitwise xor", "bitwise exclusive or", "exclusive or", "XOR operator")),
    )  # fmt: skip


FAMILY = Semantics()
