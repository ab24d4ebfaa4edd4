"""Coverage of the clustered 95 % intervals by simulation: avg@k, pass@k, and the paired change of avg@k.

Problems are drawn from a distribution of difficulties, and k responses to each from its probability of being right. The share
of simulations whose interval holds the expected value over problems is the coverage.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.evals.sampled import pass_at_k
from mechprobe.statistics import Interval, clustered_interval, paired_change, share_interval

PROBLEMS, RESPONSES, SHARES = (20, 64, 256), (1, 4, 16), (0.02, 0.1, 0.5, 0.9)
CHANGES = (0.0, 0.02, 0.05, 0.1, 0.3)


class Difficulty(NamedTuple):
    """Probabilities of a right response, equal for all problems, beta-distributed, or 0 and one other value.

    ``spread`` is None for equal problems, the sum of both beta parameters, or minus the other value.
    """

    name: str
    spread: float | None

    def draw(
        self, mean: float, size: tuple[int, int], rng: np.random.Generator
    ) -> Float[ndarray, "simulation problem"]:
        """Probabilities with the given mean over problems."""
        if self.spread is None:
            return np.full(size, mean)
        if self.spread > 0:
            return rng.beta(mean * self.spread, (1 - mean) * self.spread, size)
        top = max(-self.spread, mean)
        return np.where(rng.random(size) < mean / top, top, 0.0)

    def solved(self, mean: float, k: int) -> float:
        """The expected probability that one of k responses is right."""
        if self.spread is None:
            return 1 - (1 - mean) ** k
        if self.spread > 0:
            fails = np.arange(k)
            return float(1 - np.prod(((1 - mean) * self.spread + fails) / (self.spread + fails)))
        top = max(-self.spread, mean)
        return mean / top * (1 - (1 - top) ** k)


DIFFICULTIES = (
    Difficulty("equal", None),
    Difficulty("beta, sum 10", 10.0),
    Difficulty("beta, sum 2", 2.0),
    Difficulty("beta, sum 0.5", 0.5),
    Difficulty("0 or 0.9", -0.9),
    Difficulty("0 or 1", -1.0),
)


def covers(found: Interval, truth: float) -> bool:
    """Whether the interval holds the true value, apart from rounding."""
    return found.low <= truth + 1e-12 and truth - 1e-12 <= found.high


def coverage_of_shares(
    n: int, k: int, mean: float, kind: Difficulty, *, simulations: int, seed: int
) -> tuple[float, float]:
    """Coverage of avg@k and of pass@k', with k' the half of k."""
    rng, half = np.random.default_rng([seed, n, k, round(1000 * mean)]), max(1, k // 2)
    chances = kind.draw(mean, (simulations, n), rng)
    right = rng.random((simulations, n, k)) < chances[..., None]
    solved = kind.solved(mean, half)
    of_count = np.array([pass_at_k(k, count, half) for count in range(k + 1)])
    shares = sum(covers(share_interval(each), mean) for each in right)
    passes = sum(covers(clustered_interval(of_count[each.sum(axis=1)]), solved) for each in right)
    return shares / simulations, passes / simulations


def coverage_of_change(n: int, k: int, change: float, kind: Difficulty, *, simulations: int, seed: int) -> float:
    """Coverage of the change of avg@k where a share ``change`` of the problems goes from never to always right."""
    rng = np.random.default_rng([seed, n, k, round(1000 * change)])
    chances = kind.draw(0.3, (simulations, n), rng)
    flips = rng.random((simulations, n)) < change
    before = rng.random((simulations, n, k)) < np.where(flips, 0.0, chances)[..., None]
    after = rng.random((simulations, n, k)) < np.where(flips, 1.0, chances)[..., None]
    return sum(covers(paired_change(b, a, seed=0), change) for b, a in zip(before, after, strict=True)) / simulations


def rows(simulations: int, seed: int) -> Iterator[tuple[str, int, int, float, list[float]]]:
    """``(what, problems, responses, share or change, coverage per difficulty)``; a change needs several responses."""
    for n in PROBLEMS:
        for k in RESPONSES:
            for mean in SHARES:
                found = [
                    coverage_of_shares(n, k, mean, kind, simulations=simulations, seed=seed) for kind in DIFFICULTIES
                ]
                yield "avg@k", n, k, mean, [share for share, _ in found]
                if k > 1:
                    yield f"pass@{k // 2}", n, k, mean, [solved for _, solved in found]
            for change in CHANGES if k > 1 else ():
                yield (
                    "change",
                    n,
                    k,
                    change,
                    [
                        coverage_of_change(n, k, change, kind, simulations=simulations, seed=seed)
                        for kind in DIFFICULTIES
                    ],
                )


def main() -> None:
    """Print the coverage of every interval, and the lowest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{'interval':10} {'problems':>8} {'k':>3} {'value':>6}  " + "  ".join(kind.name for kind in DIFFICULTIES))
    lowest = 1.0
    for what, n, k, value, found in rows(given.simulations, given.seed):
        lowest = min(lowest, *found)
        cells = "  ".join(f"{each:.3f}".rjust(len(kind.name)) for each, kind in zip(found, DIFFICULTIES, strict=True))
        print(f"{what:10} {n:8} {k:3} {value:6g}  {cells}", flush=True)
    print(f"lowest coverage {lowest:.3f} at nominal 0.95, {given.simulations} simulations each")


if __name__ == "__main__":
    main()
