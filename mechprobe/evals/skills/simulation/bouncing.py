"""A ball between two walls."""

import random
from typing import NamedTuple

from mechprobe.evals.skills.family import Family, rung

N_SECONDS = (3, 5, 7, 9, 12, 16)
"""Seconds to follow the ball, by level."""
LENGTHS = range(6, 31)


class Ball(NamedTuple):
    """Length of the track in m, position in m, speed in m/s with its sign, and seconds."""

    length: int
    position: int
    velocity: int
    seconds: int


class Bouncing(Family):
    """`WALL 10:3,-4:5?`: the position after every second."""

    name, skill, domain = "bouncing", "simulation", "physics"
    keyword, alias = "WALL", "BOX"
    answer_form = "integer"
    max_answer_chars = 2
    ask = "the position in metres, as an integer,"
    templates = (
        "A ball moves without friction between two walls at 0 m and {length} m. It starts at {position} m with a speed of "
        "{speed} m/s towards the wall at {target} m, and each wall reflects it elastically. Where is it after {seconds} s?",
        "A point mass slides on a track of length {length} m (from 0 m to {length} m) with an elastic wall at each end. At "
        "time 0 s it is at {position} m with velocity {velocity} m/s. Find its position at time {seconds} s.",
        "Between perfectly elastic walls at 0 m and {length} m, a puck keeps a speed of {speed} m/s. First it is at "
        "{position} m and heads for {target} m. Trace its motion for {seconds} s. At which position is it then?",
    )

    def knobs(self, level: int) -> dict[str, int]:
        """Seconds to follow the ball."""
        return {"seconds": N_SECONDS[level - 1]}

    def draw(self, rng: random.Random, level: int) -> Ball:
        """Draw the track and the ball, which passes at most one wall in a second."""
        length = rng.choice(LENGTHS)
        speed = rng.randint(2, length - 1) * rng.choice((-1, 1))
        return Ball(length, rng.randrange(1, length), speed, N_SECONDS[level - 1])

    def level_of(self, problem: Ball) -> int:
        """From the seconds."""
        return rung(N_SECONDS, problem.seconds)

    def compact(self, problem: Ball) -> str:
        """Write the question, e.g. `WALL 10:3,-4:5?`."""
        return f"WALL {problem.length}:{problem.position},{problem.velocity}:{problem.seconds}?"

    def fields(self, problem: Ball) -> dict[str, object]:
        """Also the speed without sign, and the wall to which the ball moves first."""
        target = problem.length if problem.velocity > 0 else 0
        return {**problem._asdict(), "speed": abs(problem.velocity), "target": target}

    def answer(self, problem: Ball) -> str:
        """Move second by second."""
        return str(_positions(problem)[-1][0])

    def verify(self, problem: Ball) -> str:
        """Unfold the reflections: move freely on a ring of twice the length, then fold it back."""
        place = (problem.position + problem.velocity * problem.seconds) % (2 * problem.length)
        return str(min(place, 2 * problem.length - place))

    def steps(self, problem: Ball) -> tuple[str, ...]:
        """Write position and direction after every second, e.g. `1+`, `5+`."""
        return tuple(f"{position}{'+' if velocity > 0 else '-'}" for position, velocity in _positions(problem))

    def guesses(self, problem: Ball) -> range:
        """All positions."""
        return range(problem.length + 1)


def _positions(problem: Ball) -> list[tuple[int, int]]:
    """Position and velocity after every second."""
    result, position, velocity = [], problem.position, problem.velocity
    for _ in range(problem.seconds):
        position += velocity
        if position > problem.length:
            position, velocity = 2 * problem.length - position, -velocity
        elif position < 0:
            position, velocity = -position, -velocity
        result.append((position, velocity))
    return result


FAMILY = Bouncing()
