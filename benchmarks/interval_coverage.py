"""Coverage of the 95 % intervals: of greedy responses by enumeration, of sampled responses and of shares by simulation.

``greedy``: Tango's interval of a paired change, beside the percentile bootstrap; the probability of every pair of flips is
summed where the interval holds the true change. ``share``: the interval of a share of the ceiling, where each sample that the
ceiling turns right is turned right by the edit with that probability, and some others flip either way. ``sampled``: problems are
drawn from a distribution of difficulties, and k responses to each from its probability of being right (avg@k, pass@k, and the
paired change of avg@k).
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.evals.sampled import pass_at_k
from mechprobe.score_intervals import difference_interval
from mechprobe.statistics import Interval, clustered_interval, paired_change, paired_ratio, share_interval

PROBLEMS, RESPONSES, SHARES = (20, 64, 256), (1, 4, 16), (0.02, 0.1, 0.5, 0.9)
CHANGES = (0.0, 0.02, 0.05, 0.1, 0.3)
FLIPS, ONE_WAY = (0.01, 0.02, 0.05, 0.1, 0.2), (1.0, 0.75, 0.5)
CARRIED, CEILINGS = (0.0, 0.1, 0.5, 0.9, 1.0), (0.2, 0.5)


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
    return sum(covers(paired_change(b, a), change) for b, a in zip(before, after, strict=True)) / simulations


def coverage_of_flips(n: int, flips: float, one_way: float) -> tuple[float, float]:
    """Exact coverage of Tango's interval and of the percentile bootstrap, where a share ``flips`` of the samples change."""
    from scipy.stats import multinomial

    gains, losses = flips * one_way, flips * (1 - one_way)
    most = int(min(n, n * flips + 8 * np.sqrt(n * flips) + 6))
    tango, bootstrap, rng = 0.0, 0.0, np.random.default_rng([n, round(1e4 * flips)])
    pairs = [(b, c) for b in range(most + 1) for c in range(most + 1 - b)]
    chances = multinomial.pmf([[b, c, n - b - c] for b, c in pairs], n, [gains, losses, 1 - flips])
    for (b, c), chance in zip(pairs, chances, strict=True):
        if chance < 1e-9:
            continue
        low, high = difference_interval(c, b, n)
        tango += chance * (low - 1e-12 <= gains - losses <= high + 1e-12)
        drawn = rng.multinomial(n, [b / n, c / n, 1 - (b + c) / n], 1000)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
        bootstrap += chance * (low - 1e-12 <= gains - losses <= high + 1e-12)
    return tango, bootstrap


def coverage_of_ratio(n: int, share: float, ceiling: float, *, simulations: int, seed: int) -> float:
    """Coverage of the share of the ceiling; 2 % of the other samples flip either way under the edit."""
    rng = np.random.default_rng([seed, n, round(1000 * share), round(1000 * ceiling)])
    clean = rng.random((simulations, n, 1)) < 0.3
    turned = ~clean & (rng.random((simulations, n, 1)) < ceiling / 0.7)
    other = rng.random((simulations, n, 1)) < 0.02
    edited = np.where(turned, rng.random((simulations, n, 1)) < share, clean ^ other)
    # of the samples that the ceiling leaves, (0.7 - ceiling) are wrong and 0.3 right; both flip in 2 %
    truth = share + 0.02 * (0.7 - ceiling - 0.3) / ceiling
    found = [paired_ratio(b, a, w) for b, a, w in zip(clean, edited, clean | turned, strict=True)]
    return sum(covers(each, truth) for each in found) / simulations


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


def greedy() -> float:
    """Print the coverage of greedy changes; returns the lowest of Tango's interval."""
    print(f"{'samples':>7} {'flips':>6} {'one way':>8}  {'Tango':>6}  bootstrap")
    lowest = 1.0
    for n in PROBLEMS:
        for flips in FLIPS:
            for one_way in ONE_WAY:
                tango, bootstrap = coverage_of_flips(n, flips, one_way)
                lowest = min(lowest, tango)
                print(f"{n:7} {flips:6g} {one_way:8g}  {tango:6.3f}  {bootstrap:.3f}", flush=True)
    return lowest


def share(simulations: int, seed: int) -> float:
    """Print the coverage of shares of the ceiling; returns the lowest."""
    print(f"{'samples':>7} {'ceiling':>7} {'share':>6}  coverage")
    lowest = 1.0
    for n in PROBLEMS:
        for ceiling in CEILINGS:
            for carried in CARRIED:
                found = coverage_of_ratio(n, carried, ceiling, simulations=simulations, seed=seed)
                lowest = min(lowest, found)
                print(f"{n:7} {ceiling:7g} {carried:6g}  {found:.3f}", flush=True)
    return lowest


def sampled(simulations: int, seed: int) -> float:
    """Print the coverage for several responses to each problem; returns the lowest."""
    print(f"{'interval':10} {'problems':>8} {'k':>3} {'value':>6}  " + "  ".join(kind.name for kind in DIFFICULTIES))
    lowest = 1.0
    for what, n, k, value, found in rows(simulations, seed):
        lowest = min(lowest, *found)
        cells = "  ".join(f"{each:.3f}".rjust(len(kind.name)) for each, kind in zip(found, DIFFICULTIES, strict=True))
        print(f"{what:10} {n:8} {k:3} {value:6g}  {cells}", flush=True)
    return lowest


def main() -> None:
    """Print the coverage of every interval, and the lowest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("greedy", "share", "sampled"))
    given = parser.parse_args()
    parts = {
        "greedy": greedy,
        "share": lambda: share(given.simulations, given.seed),
        "sampled": lambda: sampled(given.simulations, given.seed),
    }
    for name, part in parts.items():
        if given.only in (None, name):
            print(f"{name}: lowest coverage {part():.3f} at nominal 0.95\n")


if __name__ == "__main__":
    main()
