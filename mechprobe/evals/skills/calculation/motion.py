"""Distances under constant acceleration."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_PHASES = (1, 2, 3, 4, 5, 6)
"""Phases of constant acceleration, by level."""
SPEEDS, ACCELERATIONS, SECONDS = range(41), range(-4, 7, 2), range(1, 10)
"""First speeds in m/s, accelerations in m/s², even so that distances are integers, and durations in s."""


class Ride(NamedTuple):
    """First speed, and acceleration and duration of every phase; it moves, and never backwards."""

    speed: int
    phases: tuple[tuple[int, int], ...]


class Motion(Family):
    """`MOVE 3;2,4;0,5?`: the speed after every phase, the distance as mean speed times duration, and their sum."""

    name, skill, domain = "motion", "calculation", "physics"
    keyword, alias = "MOVE", "RIDE"
    answer_form = "integer"
    max_answer_chars = 5
    ask = "the distance in metres, as an integer,"
    templates = (
        "A cart moves along a straight line at {speed} m/s. {told} What distance does it cover in all?",
        "At first, a train travels at {speed} m/s on a straight track. {told} How far does it travel in total?",
        "A body has the initial velocity {speed} m/s. {told} Compute its total displacement.",
        "{told} The object had a velocity of {speed} m/s when the first of these intervals began. "
        "Over all intervals together, how many metres did it move?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Phases of the ride."""
        return {"phases": N_PHASES[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Ride:
        """Draw the first speed and the phases; an acceleration that would stop the ride early is drawn again."""
        speed = first = rng.choice(SPEEDS)
        phases = []
        for _ in range(N_PHASES[level - 1]):
            seconds = rng.choice(SECONDS)
            acceleration = rng.choice([a for a in ACCELERATIONS if speed + a * seconds >= 0])
            speed += acceleration * seconds
            phases.append((acceleration, seconds))
        return Ride(first, tuple(phases))

    def level_of(self, problem: Ride) -> int:
        """From the number of phases."""
        return rung(N_PHASES, len(problem.phases)) if _distances(problem)[-1][2] > 0 else 0

    def compact(self, problem: Ride) -> str:
        """Write the question, e.g. `MOVE 3;2,4;0,5?`."""
        return f"MOVE {problem.speed}" + "".join(f";{a},{t}" for a, t in problem.phases) + "?"

    def fields(self, problem: Ride) -> dict[str, object]:
        """The phases in words."""
        told = []
        for index, (acceleration, seconds) in enumerate(problem.phases):
            begin = "For" if index == 0 else "Then, for"
            how = f"its acceleration is {acceleration} m/s^2" if acceleration else "its velocity stays constant"
            told.append(f"{begin} {seconds} s, {how}.")
        return {"speed": problem.speed, "told": " ".join(told)}

    def answer(self, problem: Ride) -> str:
        """Add the distances of the phases."""
        return str(_distances(problem)[-1][2])

    def verify(self, problem: Ride) -> str:
        """Add the distances of every single second."""
        speed, total = problem.speed, 0
        for acceleration, seconds in problem.phases:
            for _ in range(seconds):
                total += speed + acceleration // 2
                speed += acceleration
        return str(total)

    def steps(self, problem: Ride) -> tuple[str, ...]:
        """Write speed and distance of every phase, e.g. `3+2*4=11`, `(3+11)*4/2=28`, then the sums, `28+55=83`."""
        steps, speed, before = [], problem.speed, 0
        for (acceleration, seconds), (after, distance, total) in zip(problem.phases, _distances(problem), strict=True):
            steps += [f"{speed}{acceleration:+d}*{seconds}={after}", f"({speed}+{after})*{seconds}/2={distance}"]
            if before:
                steps.append(f"{before}+{distance}={total}")
            speed, before = after, total
        return tuple(steps)

    def guesses(self, problem: Ride) -> range:
        """Up to the distance at the largest speed all the time."""
        top = max(problem.speed, *(speed for speed, _, _ in _distances(problem)))
        return range(1 + top * sum(seconds for _, seconds in problem.phases))


def _distances(problem: Ride) -> list[tuple[int, int, int]]:
    """Speed at the end, distance, and total distance of every phase."""
    result, speed, total = [], problem.speed, 0
    for acceleration, seconds in problem.phases:
        after = speed + acceleration * seconds
        distance = (speed + after) * seconds // 2
        total += distance
        result.append((after, distance, total))
        speed = after
    return result


FAMILY = Motion()
