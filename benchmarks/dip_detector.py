"""How often `mechprobe.dynamics` calls a curve a dip: on flat scores and gains, where there is none, and on planted dips.

Scores have normal noise of known size; those of *items* are right and wrong of 300 items that all models share, and those of
*published sizes* are binomial, with the standard errors estimated from the scores. Planted dips are 3 standard errors of the
difference from base deep. Beside them is the power of the most powerful tests that call flat curves and gains a dip in at most 5 %
(Elliott, Müller & Watson 2015): of one that knows place, depth and shape, which no detector exceeds, and of one that has the highest
mean power over all dips of the table. `--tables FILE` resamples published curves (`mechprobe dynamics --table`) with their sizes. Prints only.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics import DynamicsConfig, dip_and_recovery
from mechprobe.dynamics.dip_statistic import Noise
from mechprobe.dynamics.dip_test import CurveTester
from mechprobe.dynamics.published import published_curves

CHECKPOINTS = 8
SHAPES = {
    "one checkpoint, the first": (-3, 0, 0, 0, 0, 0, 0, 0),
    "one checkpoint, the second": (0, -3, 0, 0, 0, 0, 0, 0),
    "one checkpoint, the fourth": (0, 0, 0, -3, 0, 0, 0, 0),
    "one checkpoint, the sixth": (0, 0, 0, 0, 0, -3, 0, 0),
    "one checkpoint, the last": (0, 0, 0, 0, 0, 0, 0, -3),
    "triangle from the first": (-1.5, -3, -1.5, 0, 0, 0, 0, 0),
    "triangle from the third": (0, 0, -1.5, -3, -1.5, 0, 0, 0),
    "two checkpoints": (0, -3, -3, 0, 0, 0, 0, 0),
    "one checkpoint, then above base": (0, 0, -3, 3, 3, 3, 3, 3),
    "triangle, then above base": (0, -1.5, -3, 1.5, 3, 3, 3, 3),
    "slow, then above base": (0, -1.5, -3, -1.5, 0, 1.5, 3, 4),
    "partial recovery": (0, -3, -3, -1.5, -1.5, -1.5, -1.5, -1.5),
    "decline at the third": (0, 0, -1.5, -3, -3, -3, -3, -3),
    "decline at once": (-3, -3, -3, -3, -3, -3, -3, -3),
    "slow decline": tuple(-3 * step / CHECKPOINTS for step in range(1, CHECKPOINTS + 1)),
}
"""Mean of each checkpoint minus base, in standard errors of the difference."""
GAINS = (1.2, 2.0, 3.0, 4.0, 6.0, 20.0)
LEVEL = 0.05


def gains(n: int) -> dict[str, list[float]]:
    """Monotone gains: steps from every checkpoint on, and slow ones."""
    steps = {
        f"{height:g} from checkpoint {start + 1}": [0.0] * start + [height] * (n - start)
        for height in GAINS
        for start in range(n)
    }
    slow = {f"slowly to {height:g}": [height * (place + 1) / n for place in range(n)] for height in GAINS}
    return steps | slow


def returns(n: int) -> dict[str, list[float]]:
    """Curves that rise by 3 or 20 and then lie exactly at base for a while or to the end."""
    return {
        f"{height:g}, at base from checkpoint {start + 1} to {end}": [
            0.0 if start <= place < end else height for place in range(n)
        ]
        for height in (3.0, 20.0)
        for start in range(1, n)
        for end in (start + 1, start + 3, n)
        if end <= n
    }


def rates(tester: CurveTester, means: Sequence[float], draws: int, seed: int) -> float:
    """Share of curves with these means, in standard errors of the difference, that are called a dip."""
    curves = tester.noise.draw(np.random.default_rng([seed, 7]), draws)
    curves[:, 1:] += np.array(means) * tester.noise.differences
    return float((tester.dips(curves) <= LEVEL).mean())


def best_power(
    targets: Sequence[Sequence[float]], noise: Noise, *, draws: int, seed: int, rounds: int = 250
) -> list[float]:
    """Power on each target of the test with the highest mean power over them, among tests of size 5 % on flat curves and gains.

    The test knows the targets; flat curves and gains are a grid, weighted by their least favourable mixture.
    """
    rng, n, unit = np.random.default_rng([seed, 3]), len(noise.checkpoints), noise.differences
    covariance = np.diag(np.array(noise.checkpoints) ** 2) + noise.base**2
    inverse, factor = np.linalg.inv(covariance), np.linalg.cholesky(covariance)
    heights = (0.75, 1.25, 1.75, 2.5, 3.5, 8.0)
    nulls = np.array([[0.0] * n, *([0.0] * start + [h] * (n - start) for h in heights for start in range(n))]) * unit
    means = np.array(targets) * unit

    def logs(rows: Float[ndarray, "row checkpoint"], centers: Float[ndarray, "center checkpoint"]) -> ndarray:
        return rows @ inverse @ centers.T - 0.5 * np.einsum("ij,jk,ik->i", centers, inverse, centers)

    def likelihoods(rows: Float[ndarray, "row checkpoint"]) -> tuple[ndarray, ndarray]:
        to_nulls, to_targets = logs(rows, nulls), logs(rows, means)
        top = np.maximum(to_nulls.max(axis=1, keepdims=True), to_targets.max(axis=1, keepdims=True))
        return np.exp(to_nulls - top) + 1e-300, np.exp(to_targets - top).mean(axis=1)

    rows = np.concatenate([rng.normal(size=(draws, n)) @ factor.T + null for null in nulls])
    to_nulls = logs(rows, nulls)
    densities = np.exp(to_nulls - to_nulls.max(axis=1, keepdims=True))
    weights = densities / (densities.sum(axis=1, keepdims=True) * draws)
    found, target = likelihoods(rows)
    logarithms = np.full(len(nulls), -np.log(len(nulls)))
    for place in range(rounds):
        size = weights[target > found @ np.exp(logarithms)].sum(axis=0)
        logarithms = np.maximum(logarithms + np.clip(size / LEVEL - 1, -1, 1) / (1 + place / 40), -30)
    powers = []
    for mean in means:
        found, target = likelihoods(rng.normal(size=(20_000, n)) @ factor.T + mean)
        powers.append(float((target > found @ np.exp(logarithms)).mean()))
    return powers


def dips(curves: int, made: Callable[[np.random.Generator], dict], seed: int) -> float:
    """Share of dips among simulated results of the whole of `dip_and_recovery`."""
    rng = np.random.default_rng([seed, 5])
    config = DynamicsConfig(draws=1000, resamples=0)
    return sum(dip_and_recovery(**made(rng), config=config).dipped for _ in range(curves)) / curves


def items(means: Sequence[float], n: int = 300) -> Callable[[np.random.Generator], dict]:
    """Outcomes on shared items whose difficulty is uniform; every probability falls or rises by the same factor."""

    def made(rng: np.random.Generator) -> dict:
        chance = rng.beta(1, 1, n)
        error = np.sqrt(2 * (chance * (1 - chance)).mean() / n) / chance.mean()
        right = np.array([rng.random(n) < np.clip(chance * (1 + error * mean), 0, 1) for mean in (0.0, *means)]).astype(
            float
        )
        return {"steps": range(1, len(means) + 1), "scores": right[1:], "base_score": right[0]}

    return made


def published(means: Sequence[float], share: float, n: int) -> Callable[[np.random.Generator], dict]:
    """Binomial scores around one share."""

    def made(rng: np.random.Generator) -> dict:
        error = np.sqrt(2 * share * (1 - share) / n)
        scores = rng.binomial(n, np.clip(share + error * np.array([0.0, *means]), 0, 1)) / n
        return {"steps": range(1, len(means) + 1), "scores": scores[1:], "base_score": scores[0], "n": n}

    return made


def print_levels(draws: int, seed: int) -> None:
    """How often flat curves, gains and returns are called a dip, and dips of one checkpoint at every place."""
    for n, errors in ((CHECKPOINTS, (1.0,)), (4, (1.0,)), (16, (1.0,)), (CHECKPOINTS, (0.6, 1.4))):
        tester = CurveTester.of(Noise(1.0, errors * (n // len(errors))), draws=8000, seed=seed)
        flat = rates(tester, [0.0] * n, 4 * draws, seed)
        gain = max((rates(tester, mean, draws, seed), name) for name, mean in gains(n).items())
        back = max((rates(tester, mean, draws, seed), name) for name, mean in returns(n).items())
        print(f"{n} checkpoints, errors {errors}: flat {flat:.3f}, worst gain {gain}, worst return {back}")
        single = [rates(tester, [-3.0 if place == low else 0.0 for place in range(n)], draws, seed) for low in range(n)]
        print(f"  one checkpoint, by place: {np.round(single, 3).tolist()}, mean {np.mean(single):.3f}", flush=True)


def print_power(draws: int, seed: int) -> None:
    """Planted dips that are found, and the bound."""
    tester = CurveTester.of(Noise(1.0, (1.0,) * CHECKPOINTS), draws=8000, seed=seed)
    together = best_power(list(SHAPES.values()), tester.noise, draws=1500, seed=seed)
    print("| planted dip | found | best test for this dip | best test for all in the table |\n|---|---|---|---|")
    for (name, mean), all_at_once in zip(SHAPES.items(), together, strict=True):
        alone = best_power([mean], tester.noise, draws=1000, seed=seed)[0]
        print(f"| {name} | {rates(tester, mean, draws, seed):.3f} | {alone:.2f} | {all_at_once:.2f} |", flush=True)


def print_whole(curves: int, seed: int) -> None:
    """The same for the whole of `dip_and_recovery`, with estimated standard errors."""
    kinds: dict[str, Callable[[Sequence[float]], Callable[[np.random.Generator], dict]]] = {
        "items": items,
        "share 0.06 of 300": lambda means: published(means, 0.06, 300),
        "share 0.5 of 1,000": lambda means: published(means, 0.5, 1000),
    }
    shapes = {
        "flat": (0,) * CHECKPOINTS,
        **{name: SHAPES[name] for name in ("one checkpoint, the fourth", "triangle from the third", "two checkpoints")},
    }
    for name, kind in kinds.items():
        print(name, {label: round(dips(curves, kind(mean), seed), 3) for label, mean in shapes.items()}, flush=True)


def print_tables(path: Path, seed: int) -> None:
    """Labels of published curves, and of the curves drawn again from their sizes."""
    for name, curve in published_curves(path, DynamicsConfig(resamples=2000, seed=seed)).items():
        labels = Counter(curve.resampled_labels)
        dipped = sum(count for label, count in labels.items() if label.startswith("dip") or label == "unresolved")
        back = labels["dip_recover_exceed"] + labels["dip_recover_to_base"]
        shares = [f"{count / labels.total():.3f}" for count in (labels[curve.label], dipped, back)]
        print(f"| {path.stem} | {name} | {curve.label} | {curve.tests.dip_p:.4f} | {' | '.join(shares)} |", flush=True)


def main() -> None:
    """Print the tables of docs/dynamics.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000, help="Curves of each kind.")
    parser.add_argument("--whole", type=int, default=400, help="Curves of each kind for the whole of dip_and_recovery.")
    parser.add_argument(
        "--only", choices=("levels", "power", "whole", "tables"), nargs="*", help="Parts; all if left out."
    )
    parser.add_argument("--tables", type=Path, nargs="*", default=[], help="Published scores.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    parts = args.only or ("levels", "power", "whole", "tables")
    if "levels" in parts:
        print_levels(args.draws, args.seed)
    if "power" in parts:
        print_power(args.draws, args.seed)
    if "whole" in parts:
        print_whole(args.whole, args.seed)
    for path in args.tables if "tables" in parts else ():
        print_tables(path, args.seed)


if __name__ == "__main__":
    main()
