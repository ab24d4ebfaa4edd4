"""How far residual streams moved: PCA shift and linear CKA per layer, on the same sampled positions in both models.

Both compare positions one by one, without pooling, so padding is never counted. The basis of the PCA is fitted on base alone,
and base is centred. arXiv 2507.00432 pools over positions with padding among them, does not centre, and gives no interval.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.statistics import Interval, cluster_draws

N_COMPONENTS = 2
METRICS = ("pc1_shift", "pc2_shift", "distance", "cka", "cka_unbiased")
METRIC_RULE = {
    "pc1_shift": "Mean difference tuned - base along base's first principal component, in standard deviations of base along it.",
    "pc2_shift": "The same along the second component.",
    "distance": "Root mean square of the difference, over that of base around its mean.",
    "cka": "Linear CKA (Kornblith et al. 2019); 1 for residuals that agree up to rotation and scale.",
    "cka_unbiased": "The same from unbiased HSIC (Song et al. 2012), which does not grow with width over positions; no interval.",
}


class LayerShift(NamedTuple):
    """The numbers of one layer by metric, and the share of base's variance along both components."""

    values: dict[str, Interval]
    explained: tuple[float, ...]


def layer_shift(
    base: Float[ndarray, "position d_model"],
    tuned: Float[ndarray, "position d_tuned"],
    cluster: Int[ndarray, " position"],
    *,
    draws: int,
    seed: int,
) -> LayerShift:
    """Compare the residuals of two models at the same positions.

    The PCA numbers need equal widths and are left out otherwise. Intervals are percentile bootstraps over clusters, at least two,
    with the basis held fixed. ``n`` is the number of positions.
    """
    x, y = base.astype(np.float64), tuned.astype(np.float64)
    weights = cluster_draws(cluster, draws=draws, seed=seed)
    gram_x, gram_y = (_gram(part) for part in (x, y))
    values = {"cka": _interval(_cka(gram_x, gram_y, np.ones((1, len(x))))[0], _cka(gram_x, gram_y, weights), len(x))}
    values["cka_unbiased"] = Interval(_unbiased_cka(gram_x, gram_y), np.nan, np.nan, len(x))
    explained: tuple[float, ...] = ()
    if x.shape[1] == y.shape[1]:
        explained, shifts = _pca(x, y, gram_x, weights)
        values |= shifts
    return LayerShift({name: values[name] for name in METRICS if name in values}, explained)


def _gram(x: ndarray) -> ndarray:
    centred = x - x.mean(axis=0)
    return centred @ centred.T


def _pca(x: ndarray, y: ndarray, gram: ndarray, weights: ndarray) -> tuple[tuple[float, ...], dict[str, Interval]]:
    n = len(x)
    variances, vectors = np.linalg.eigh(gram)
    total, found = max(float(np.trace(gram)), 1e-300), {}
    explained = tuple(float(max(variances[-1 - k], 0.0)) / total for k in range(N_COMPONENTS))
    moved, centred = y - x, x - x.mean(axis=0)
    for k in range(N_COMPONENTS):
        direction = centred.T @ vectors[:, -1 - k]
        size = float(np.linalg.norm(direction))
        name = f"pc{k + 1}_shift"
        if size <= 1e-9 * total**0.5:  # base does not vary along it
            found[name] = Interval(np.nan, np.nan, np.nan, n)
            continue
        direction *= np.sign(direction[np.abs(direction).argmax()]) / size  # the sign of a component is arbitrary
        along = moved @ direction / (variances[-1 - k] / n) ** 0.5
        found[name] = _interval(along.mean(), weights @ along / weights.sum(axis=1), n)
    squares, spread = (moved**2).sum(axis=1), (centred**2).sum(axis=1)
    ratio = (squares.sum() / spread.sum()) ** 0.5 if spread.sum() else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = ((weights @ squares) / (weights @ spread)) ** 0.5
    found["distance"] = _interval(ratio, drawn, n)
    return explained, found


def _cka(gram_x: ndarray, gram_y: ndarray, weights: Float[ndarray, "draw position"]) -> Float[ndarray, " draw"]:
    """Linear CKA of each draw, in which position i counts ``weights[draw, i]`` times."""
    n = weights.sum(axis=1)
    sums = {id(gram): weights @ gram for gram in (gram_x, gram_y)}
    totals = {key: (own * weights).sum(axis=1) for key, own in sums.items()}

    def hsic(one: ndarray, other: ndarray) -> ndarray:
        a, b = sums[id(one)], sums[id(other)]
        whole = ((weights @ (one * other)) * weights).sum(axis=1)
        return whole - 2 / n * (weights * a * b).sum(axis=1) + totals[id(one)] * totals[id(other)] / n**2

    with np.errstate(divide="ignore", invalid="ignore"):
        return hsic(gram_x, gram_y) / np.sqrt(hsic(gram_x, gram_x) * hsic(gram_y, gram_y))


def _unbiased_cka(gram_x: ndarray, gram_y: ndarray) -> float:
    """CKA from the unbiased estimator of HSIC; NaN for fewer than 4 positions."""
    n = len(gram_x)
    if n < 4:
        return float("nan")
    one, other = (gram - np.diag(np.diag(gram)) for gram in (gram_x, gram_y))

    def hsic(k: ndarray, m: ndarray) -> float:
        rest = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(axis=0) @ m.sum(axis=0))
        return float(((k * m).sum() + rest) / (n * (n - 3)))

    square = hsic(one, one) * hsic(other, other)
    return hsic(one, other) / square**0.5 if square > 0 else float("nan")


def _interval(value: float, drawn: ndarray, n: int) -> Interval:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return Interval(float(value), float("nan"), float("nan"), n)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(float(value), float(low), float(high), n)


def shifts_of_layers(
    base: Iterator[tuple[int, ndarray]],
    tuned: Iterator[tuple[int, ndarray]],
    cluster: ndarray,
    *,
    draws: int,
    seed: int,
) -> dict[int, LayerShift]:
    """`layer_shift` of every layer, with the residuals of one layer in memory at a time."""
    return {
        layer: layer_shift(x, y, cluster, draws=draws, seed=seed)
        for (layer, x), (_, y) in zip(base, tuned, strict=True)
    }
