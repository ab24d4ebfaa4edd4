"""Worked chains of velocities under constant accelerations."""

import random

from mechprobe.evals.skills.diagnostic.worked import Line, Worked, WorkedFamily


class WorkedMotion(WorkedFamily):
    """`MOTION 3+2*4-1*2:3+2*4=11;11-1*2=8?`: velocity, then acceleration times duration; `2:9`."""

    name, domain = "worked_motion", "physics"
    keyword, alias = "MOTION", "DRIVE"
    n_steps = (2, 2, 3, 3, 4, 4)
    largest = (20, 40, 40, 60, 60, 99)
    largest_start = 9
    templates = (
        "A cart moves along a line at {start} m/s. Then {statement}. Someone calculated its velocity after every phase, in m/s:\n"
        "{solution}\nAt most one step is wrong; the steps after it build on it. {verdict}",
        "The velocity of a train is {start} m/s at first. After that {statement}. Check this solution, which gives the velocity in m/s "
        "phase by phase:\n{solution}\nNo more than one step contains an error. {verdict}",
        "Initial velocity: {start} m/s. Phases: {statement}. A student wrote for the velocities in m/s:\n{solution}\nFind the step "
        "that does not agree with the phases or with the steps before it, if there is one. {verdict}",
    )

    def operation(self, rng: random.Random, value: int) -> str:
        """Draw an acceleration from 1 to 6 m/s^2, speeding up more often than braking, and a duration from 2 to 9 s."""
        del value
        return f"{rng.choice('++-')}{rng.randint(1, 6)}*{rng.randint(2, 9)}"

    def result(self, value: int, operation: str) -> int:
        """V + a t."""
        acceleration, duration = map(int, operation.split("*"))
        return value + acceleration * duration

    def check(self, value: int, operation: str) -> int:
        """Let the velocity change second by second."""
        acceleration, duration = map(int, operation.split("*"))
        for _ in range(duration):
            value += acceleration
        return value

    def work(self, problem: Worked) -> int:
        """Units by which the velocity changes in the phases to check: the work of a solver that counts."""
        phases = problem.operations[: problem.step or None]
        return sum(abs(self.result(0, operation)) for operation in phases)

    def spelled(self, operation: str) -> str:
        """E.g. `it speeds up by 2 m/s^2 for 4 s`."""
        acceleration, duration = operation[1:].split("*")
        verb = "speeds up" if operation[0] == "+" else "brakes"
        return f"it {verb} by {acceleration} m/s^2 for {duration} s"

    def written(self, line: Line) -> str:
        """E.g. `v = 3 + 2 * 4 = 11`."""
        return f"v = {super().written(line)}"


FAMILY = WorkedMotion()
