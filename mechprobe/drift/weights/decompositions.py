"""The decompositions of base's weight and of its updates: exact ones of small matrices, estimates of large ones."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from mechprobe.drift.weights.checkpoints import Weight
from mechprobe.drift.weights.compared import Update
from mechprobe.drift.weights.nulls import RandomUpdate, generator_of
from mechprobe.drift.weights.sketch import Blocks, sketched_numbers, sketched_projections, top_singular
from mechprobe.drift.weights.spectra import (
    Grams,
    Singular,
    exact_projections,
    geometry_numbers,
    grams,
    singular_of,
    singular_values,
    spectrum_numbers,
)
from mechprobe.drift.weights.stored import View

HELD = 1 << 25
"""Entries of the largest matrix that stays in memory, in float32, while its singular values are estimated."""
Numbers = dict[str, float]


def of_factors(update: Update, k: int) -> Singular | None:
    """The exact decomposition of an update that is a product of factors, through QR of both; None for other updates."""
    factors = update.tuned.factors if update.low_rank else None
    if factors is None:
        return None
    (first, left), (second, right) = torch.linalg.qr(factors.left), torch.linalg.qr(factors.right.T)
    rows, values, columns = torch.linalg.svd(left @ right.T)
    vectors = second @ columns.T if update.base.stored.tall else first @ rows
    return Singular(values, vectors[:, :k])


class Exact:
    """Decompositions from Gram matrices, see `mechprobe.drift.weights.spectra`."""

    def __init__(self, view: View, base: Weight, k: int, _seed: int) -> None:
        self.view, self.weight, self.k = view, base, k
        self.gram = torch.zeros(view.short, view.short, dtype=torch.float64)
        for block in self._weights():
            self.gram.addmm_(block.T, block)
        self.base = singular_of(self.gram, k)
        self.errors: Numbers = {"error_values": 0.0, "error_nuclear": 0.0}
        self._update: tuple[Update, Grams] | None = None
        self._random: dict[RandomUpdate, tuple[Grams, Numbers]] = {}

    def spectrum(self, update: Update) -> tuple[Numbers, Singular]:
        """Numbers of an update, and its decomposition."""
        found = of_factors(update, self.k) or singular_of(self._grams(update).own, self.k)
        return spectrum_numbers(found.values), found

    def geometry(self, update: Update, k: int) -> tuple[Numbers, int]:
        """Numbers of W and W + D together, and the size of the subspaces: ``k``, or the smaller of both ranks."""
        return self._geometry(self._grams(update), k)

    def random_spectrum(self, random: RandomUpdate) -> Numbers:
        """Numbers of a random update of norm 1."""
        return self._drawn(random)[1]

    def random_geometry(self, random: RandomUpdate, norm: float, k: int) -> Numbers:
        """The numbers of `geometry` for a random update of a norm."""
        return self._geometry(self._drawn(random)[0].times(norm), k)[0]

    def _weights(self) -> Iterator[Tensor]:
        for start, stop in self.view.spans:
            yield self.weight.block(start, stop, torch.float64)

    def _grams(self, update: Update) -> Grams:
        if self._update is None or self._update[0] is not update:
            self._update = update, grams(update.blocks(), self.view.short)
        return self._update[1]

    def _geometry(self, update: Grams, k: int) -> tuple[Numbers, int]:
        tuned = singular_of(self.gram + update.cross + update.cross.T + update.own, k)
        k = min(k, self.base.rank, tuned.rank)
        if not k:
            return {}, 0
        return geometry_numbers(self.base, tuned, exact_projections(self.base, tuned, update, k)), k

    def _drawn(self, random: RandomUpdate) -> tuple[Grams, Numbers]:
        if random not in self._random:
            found = grams(zip(self._weights(), random.blocks(), strict=True), self.view.short)
            self._random[random] = found, spectrum_numbers(singular_values(found.own))
        return self._random[random]


class Estimated:
    """Estimates for larger matrices, see `mechprobe.drift.weights.sketch`. It has the methods of `Exact`.

    Attributes:
        errors: Of the last update: the largest residual of first singular vectors, and the standard error of the nuclear norm.
    """

    def __init__(self, view: View, base: Weight, k: int, seed: int) -> None:
        self.view, self.k, self.seed = view, k, seed
        self._weights = self._kept(lambda: (base.block(*span, torch.float32) for span in view.spans))
        self.base = self._top(self._weights, "base")
        self.errors: Numbers = {}
        self._update: tuple[Update, Blocks] | None = None

    def spectrum(self, update: Update) -> tuple[Numbers, Singular]:
        """Numbers of an update, and its decomposition; that of an adapter is exact."""
        found = of_factors(update, self.k)
        if found is not None:
            self.errors = {"error_values": self.base.error, "error_nuclear": 0.0}
            return spectrum_numbers(found.values), found
        blocks = self._blocks(update)
        found = self._top(blocks, "update")
        square = sum(block.double().square().sum().item() for block in blocks())
        numbers, error = sketched_numbers(blocks, found, square, generator_of("probes", self.seed))
        self.errors = {"error_values": max(self.base.error, found.error), "error_nuclear": error}
        return numbers, found

    def geometry(self, update: Update, k: int) -> tuple[Numbers, int]:
        """As in `Exact`; the change of singular values is that of the first ``k``."""
        numbers, k, error = self._geometry(self._blocks(update), k)
        self.errors["error_values"] = max(self.errors["error_values"], error)
        return numbers, k

    def random_spectrum(self, random: RandomUpdate) -> Numbers:
        """Numbers of a random update of norm 1."""
        return _random_numbers(random, self.k)

    def random_geometry(self, random: RandomUpdate, norm: float, k: int) -> Numbers:
        """The numbers of `geometry` for a random update of a norm."""
        blocks = self._kept(lambda: (block.mul_(norm).float() for block in random.blocks()))
        return self._geometry(blocks, k)[0]

    def _geometry(self, update: Blocks, k: int) -> tuple[Numbers, int, float]:
        def pairs() -> Iterable[tuple[Tensor, Tensor]]:
            return zip(self._weights(), update(), strict=True)

        tuned = self._top(lambda: (weight.double() + change for weight, change in pairs()), "tuned")
        k = min(k, self.base.rank, tuned.rank)
        if not k:
            return {}, 0, tuned.error
        base, tuned = self.base.first(k), tuned.first(k)
        return geometry_numbers(base, tuned, sketched_projections(pairs, base, tuned, k)), k, tuned.error

    def _blocks(self, update: Update) -> Blocks:
        """The blocks of an update; those of the last one are kept if it is small."""
        if self._update is None or self._update[0] is not update:
            self._update = None  # frees the memory of the last one
            self._update = update, self._kept(lambda: (change for _, change in update.blocks(torch.float32)))
        return self._update[1]

    def _kept(self, blocks: Callable[[], Iterable[Tensor]]) -> Blocks:
        if self.view.n > HELD:
            return blocks
        kept = list(blocks())
        return lambda: kept

    def _top(self, blocks: Blocks, what: str) -> Singular:
        return top_singular(blocks, self.view.short, self.k, generator_of("sketch", self.seed, what))


@lru_cache(maxsize=256)
def _random_numbers(random: RandomUpdate, k: int) -> Numbers:
    """Estimated numbers of a random update of norm 1, which depend on its shape alone."""
    top = top_singular(random.blocks, random.shape[1], k, generator_of("sketch", random.seed, "random"))
    return sketched_numbers(random.blocks, top, 1.0, generator_of("probes", random.seed))[0]
