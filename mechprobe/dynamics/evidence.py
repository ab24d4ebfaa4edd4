"""What is known about a curve of scores: the scores, their noise, and how to draw them again.

Published scores have the binomial noise of n · k responses (n problems, k responses to each), as if all were independent: the
problems are the same at every checkpoint, so their choice is no noise of a difference. Items have the noise of their paired
differences. Smoothing of both is ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.dip_statistic import Noise

_CELLS = 1 << 22


@runtime_checkable
class Evidence(Protocol):
    """Scores of base and of every checkpoint, as shares or in the unit of the standard errors."""

    @property
    def n(self) -> int | None:
        """Problems; None where standard errors were given instead."""
        ...

    @property
    def curve(self) -> Float[ndarray, " score"]:
        """Scores, base first."""
        ...

    @property
    def noise(self) -> Noise:
        """Noise of each score that the other scores do not share."""
        ...

    def resampled(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"]:
        """The curve drawn again: from its published sizes, or over resampled items."""
        ...

    def permuted(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"] | None:
        """Flat curves by exchanging the models within each item; None without items."""
        ...


@dataclass(frozen=True, eq=False)
class PublishedShares:
    """Shares of right responses with the number of problems, and of responses to each."""

    curve: Float[ndarray, " score"]
    responses: Float[ndarray, " score"]
    """Responses behind each score."""
    n: int

    @property
    def noise(self) -> Noise:
        """√(p̃ (1 − p̃) / (m + 4)) with p̃ = (m p + 2) / (m + 4) for m responses (Agresti & Coull 1998)."""
        smooth = (self.responses * self.curve + 2) / (self.responses + 4)
        errors = np.sqrt(smooth * (1 - smooth) / (self.responses + 4))
        return Noise(float(errors[0]), tuple(errors[1:].tolist()))

    def resampled(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"]:
        """Binomial scores of the published sizes."""
        sizes = np.maximum(1, np.round(self.responses)).astype(int)
        return rng.binomial(sizes, np.clip(self.curve, 0, 1), (draws, len(sizes))) / sizes

    def permuted(self, rng: np.random.Generator, draws: int) -> None:
        """There are no items."""


@dataclass(frozen=True, eq=False)
class ScoresWithErrors:
    """Scores of any unit with independent standard errors."""

    curve: Float[ndarray, " score"]
    noise: Noise
    n: None = None

    def resampled(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"]:
        """Normal scores."""
        return self.curve + self.noise.draw(rng, draws)

    def permuted(self, rng: np.random.Generator, draws: int) -> None:
        """There are no items."""


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Right responses of every item and the responses that count; a score is the sum of the former over that of the latter.

    Where every response counts, the score is the mean over items of the share of right responses.
    """

    right: Float[ndarray, "score item"]
    counted: Float[ndarray, "score item"]

    @property
    def n(self) -> int:
        """Items."""
        return self.right.shape[1]

    @property
    def curve(self) -> Float[ndarray, " score"]:
        """Scores, base first; 0 where nothing counts."""
        return _ratio(self.right.sum(axis=1), self.counted.sum(axis=1))

    @property
    def noise(self) -> Noise:
        """Errors whose squares add up to the variances of the paired differences between all scores, by least squares.

        With V_cd the variance of the mean difference between scores c and d over items, and C scores, D_c = (Σ_d V_cd − Σ_c D_c)
        / (C − 2), where Σ_c D_c = Σ_cd V_cd / (2 (C − 1)). Each V has the variance of one further item with a difference of 1.
        """
        each = self.counted.mean(axis=1, keepdims=True)
        parts = (self.right - self.curve[:, None] * self.counted) / np.where(each > 0, each, 1.0)
        n, scores = self.n, len(parts)
        squares = (parts**2).sum(axis=1)
        spread = squares[:, None] + squares[None] - 2 * parts @ parts.T
        variances = (spread + 1) / (n * max(n - 1, 1))
        np.fill_diagonal(variances, 0.0)
        total = variances.sum() / (2 * (scores - 1))
        own = (variances.sum(axis=1) - total) / (scores - 2)
        errors = np.sqrt(np.maximum(own, 0.5 / (n * max(n - 1, 1))))
        return Noise(float(errors[0]), tuple(errors[1:].tolist()))

    def resampled(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"]:
        """Scores over items drawn with replacement."""
        times = rng.multinomial(self.n, np.full(self.n, 1 / self.n), draws).astype(float)
        return _ratio(times @ self.right.T, times @ self.counted.T)

    def permuted(self, rng: np.random.Generator, draws: int) -> Float[ndarray, "draw score"]:
        """Scores with the models exchanged within each item."""
        return np.concatenate(list(self._permuted(rng, draws)))

    def _permuted(self, rng: np.random.Generator, draws: int) -> Iterator[Float[ndarray, "draw score"]]:
        rows = max(1, _CELLS // self.right.size)
        for start in range(0, draws, rows):
            order = rng.random((min(rows, draws - start), *self.right.shape)).argsort(axis=1)
            parts = (np.take_along_axis(part[None], order, axis=1).sum(axis=2) for part in (self.right, self.counted))
            yield _ratio(*parts)


def _ratio(total: ndarray, counted: ndarray) -> ndarray:
    return np.divide(total, counted, out=np.zeros_like(total, dtype=float), where=counted > 0)
