"""Laws of school physics, each with a question that it answers in whole numbers."""

import random

from mechprobe.evals.skills.fact_retrieval.facts import Facts
from mechprobe.evals.skills.fact_retrieval.rules import Numbers, Rule, pair


def _collision(rng: random.Random, low: int, high: int) -> Numbers:
    m1, m2 = rng.randint(low, high), rng.randint(1, 12)
    return m1, m2, (m1 + m2) * rng.randint(1, 4)


def _common_velocity(m1: int, m2: int, v: int) -> int:
    """The velocity at which the masses together have the momentum that the first one had."""
    return next(u for u in range(v + 1) if (m1 + m2) * u == m1 * v)


def _kinetic(rng: random.Random, low: int, high: int) -> Numbers:
    mass = rng.randint(low, high)
    return mass, rng.randint(1, 10) * (1 + mass % 2)


def _work_of_braking(mass: int, speed: int) -> int:
    """Brake with 2 N: the work is 2 times the way, and the way of the braking is v² m / (2 · 2)."""
    way_times_four = speed * speed * mass
    return 2 * way_times_four // 4


def _ratio(rng: random.Random, low: int, high: int) -> Numbers:
    """A first quantity, and two others of which the second divides the first."""
    second = rng.randint(1, 9)
    return rng.randint(low, high), second * rng.randint(2, 9), second


def _balanced(first: int, second: int, third: int) -> int:
    """Search the fourth quantity with first * second = third * fourth."""
    low, high = 0, first * second
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if third * middle >= first * second else (middle + 1, high)
    return low


def _distance(rng: random.Random, low: int, high: int) -> Numbers:
    factor = rng.randint(2, 9)
    start = rng.randint(low, high)
    return start, factor, start * factor * factor


def _heat(rng: random.Random, low: int, high: int) -> Numbers:
    heat = rng.randint(low, high)
    return heat, rng.randint(1, heat)


def _added(times: int, amount: int) -> int:
    return sum(amount for _ in range(times))


class Laws(Facts):
    """`LAW OHM VOLTAGE 3,4?`: 12."""

    name, domain = "laws", "physics"
    keyword, alias, kind = "LAW", "PRINCIPLE", "law or principle"
    rules = (
        Rule("Newton's second law", "NEWTON", "FORCE", "A body of {0} kg has an acceleration of {1} m/s^2. What is the net force on it, in newtons?",
             pair(2, 12), lambda m, a: m * a, _added, "{0}*{1}={answer}", ("second law of Newton", "Newton's second law of motion", "Newton's 2nd law")),
        Rule("Ohm's law", "OHM", "VOLTAGE", "A current of {1} A flows through a resistor of {0} ohms. What is the voltage across it, in volts?",
             pair(2, 12), lambda r, i: r * i, lambda r, i: i * i * r // i, "{0}*{1}={answer}", ("law of Ohm",)),
        Rule("Hooke's law", "HOOKE", "SPRING", "A spring of stiffness {0} N/m is stretched by {1} m within its elastic range. What is the size of its restoring force, in newtons?",
             pair(2, 12), lambda k, x: k * x, lambda k, x: (k * (x + 1) ** 2 - k * (x - 1) ** 2) // 4, "{0}*{1}={answer}", ("law of Hooke",)),
        Rule("conservation of momentum", "MOMENTUM", "STICK", "A body of {0} kg with the velocity {2} m/s hits a body of {1} kg at rest, and both stick together. What is their common velocity, in m/s?",
             _collision, lambda m1, m2, v: m1 * v // (m1 + m2), _common_velocity, "{0}*{2}:({0}+{1})={answer}",
             ("momentum conservation", "law of conservation of momentum", "conservation of linear momentum", "momentum is conserved")),
        Rule("the kinetic energy formula", "KINETIC", "ENERGY", "A body of {0} kg moves at {1} m/s. What is its kinetic energy, in joules?",
             _kinetic, lambda m, v: m * v * v // 2, _work_of_braking, "{0}*{1}*{1}:2={answer}", ("kinetic energy formula", "formula for kinetic energy", "definition of kinetic energy")),
        Rule("the formula of gravitational potential energy", "POTENTIAL", "LIFT", "A body of {0} kg is lifted by {1} m. With g = 10 m/s^2, by how much does its potential energy grow, in joules?",
             pair(1, 12), lambda m, h: m * h * 10, lambda m, h: _added(h, m * 10), "{0}*{1}*10={answer}",
             ("gravitational potential energy", "potential energy formula", "formula for potential energy")),
        Rule("Boyle's law", "BOYLE", "PRESSURE", "A gas at the pressure {0} kPa has a volume of {1} L. It is compressed to {2} L at constant temperature. What is its pressure now, in kPa?",
             _ratio, lambda p, v, w: p * v // w, _balanced, "{0}*{1}:{2}={answer}", ("law of Boyle", "Boyle-Mariotte law")),
        Rule("the wave equation", "WAVE", "SPEED", "A wave has the frequency {0} Hz and the wavelength {1} m. How fast does it travel, in m/s?",
             pair(2, 12), lambda f, w: f * w, _added, "{0}*{1}={answer}", ("wave equation", "wave speed equation", "wave speed formula", "wave formula")),
        Rule("Joule's first law", "JOULE", "POWER", "A current of {1} A flows through a resistor of {0} ohms. How much power becomes heat, in watts?",
             pair(2, 12), lambda r, i: i * i * r, lambda r, i: (r * i) * i, "{1}*{1}*{0}={answer}", ("Joule's law", "Joule heating", "Joule-Lenz law")),
        Rule("the law of the lever", "LEVER", "BALANCE", "A force of {0} N acts on one side of a lever, {1} m from its pivot. Which force {2} m from the pivot on the other side balances it, in newtons?",
             _ratio, lambda f, d, e: f * d // e, _balanced, "{0}*{1}:{2}={answer}", ("law of the lever", "lever law", "principle of the lever", "principle of moments", "lever principle")),
        Rule("Archimedes' principle", "ARCHIMEDES", "BUOYANCY", "A sealed body of {0} L is fully under a liquid of density {1} kg/L. With g = 10 m/s^2, what is the buoyant force on it, in newtons?",
             pair(1, 12), lambda v, d: 10 * v * d, lambda v, d: _added(v, 10 * d), "10*{0}*{1}={answer}", ("principle of Archimedes", "Archimedes's principle", "law of Archimedes")),
        Rule("the inverse-square law", "INVERSE", "INTENSITY", "At 1 m from a point source of light the intensity is {2} W/m^2. What is it at {1} m, in W/m^2?",
             _distance, lambda _i, k, start: start // (k * k), lambda _i, k, start: _balanced(1, start, k * k), "{2}:({1}*{1})={answer}",
             ("inverse-square law", "inverse square law")),
        Rule("the first law of thermodynamics", "FIRST", "INTERNAL", "A gas takes up {0} J of heat and does {1} J of work. By how much does its internal energy grow, in joules?",
             _heat, lambda q, w: q - w, lambda q, w: next(u for u in range(q + 1) if u + w == q), "{0}-{1}={answer}",
             ("first law of thermodynamics", "first thermodynamic law")),
    )  # fmt: skip


FAMILY = Laws()
