"""Views of a store in which no model differs systematically from another, for the nulls.

`IdenticalModels` gives every model the activations of base. `ShuffledLabels` divides each model's activations by its scale, and
permutes the models' names for every sequence. Both read the store and write nothing.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import ConfigError, StoreError

BLOCK_ROWS = 512


class NullView:
    """Activations of a run's models as one of the nulls defines them: a `mechprobe.features.rows.RowStore`.

    Attributes:
        models: The names of the run's models.
        n_rows: Rows of the store.
        tokens: Tokens of the store.
    """

    def __init__(self, store: ActivationStore, models: tuple[str, ...], site: str) -> None:
        self._store, self.models, self._site = store, models, site
        self.n_rows, self.tokens = store.n_rows, store.tokens

    def rows(self, start: int, stop: int, site: str | None = None) -> Float[Tensor, "row model d_model"]:
        """Consecutive rows, at the view's site unless another is named."""
        raise NotImplementedError

    def scale(self) -> Float[Tensor, " model"]:
        """Divisor of each model's activations."""
        raise NotImplementedError

    def training_rows(self) -> Bool[ndarray, " row"]:
        """Rows that a dictionary may be trained on."""
        return self._store.in_split("train")


class IdenticalModels(NullView):
    """Every model has the activations of base; training rows can be limited to the range ``within``."""

    def __init__(
        self, store: ActivationStore, models: tuple[str, ...], site: str, *, within: range | None = None
    ) -> None:
        super().__init__(store, models, site)
        self.within = within

    def rows(self, start: int, stop: int, site: str | None = None) -> Float[Tensor, "row model d_model"]:
        """The rows of base, repeated for each model."""
        return self._store.rows(start, stop, site or self._site).expand(-1, len(self.models), -1)

    def scale(self) -> Float[Tensor, " model"]:
        """The scale of base, for each model."""
        return self._store.scale(self._site).expand(len(self.models)).contiguous()

    def training_rows(self) -> Bool[ndarray, " row"]:
        """The training rows inside ``within``."""
        kept = super().training_rows().copy()
        if self.within is not None:
            kept[: self.within.start] = kept[self.within.stop :] = False
        return kept


class ShuffledLabels(NullView):
    """The names of the models are permuted at random for every sequence.

    Raises:
        ConfigError: The models have different widths, so their activations cannot be exchanged.
    """

    def __init__(self, store: ActivationStore, site: str, seed: int) -> None:
        super().__init__(store, store.models, site)
        if len(set(store.widths.values())) > 1:
            raise ConfigError(
                f"The labels of models of different widths ({store.widths}) cannot be shuffled; choose another null."
            )
        n_samples = int(np.max(self.tokens.sample)) + 1 if self.n_rows else 0
        labels = np.tile(np.arange(len(self.models)), (n_samples, 1))
        self.labels: Int[ndarray, "sample model"] = np.random.default_rng([seed, 11]).permuted(labels, axis=1)
        self._scale = store.scale(site)

    def rows(self, start: int, stop: int, site: str | None = None) -> Float[Tensor, "row model d_model"]:
        """Scaled rows with permuted models."""
        x = self._store.rows(start, stop, site or self._site) / self._scale[:, None]
        permuted = torch.from_numpy(self.labels[self.tokens.sample[start:stop]])
        return x.gather(1, permuted[:, :, None].expand_as(x))

    def scale(self) -> Float[Tensor, " model"]:
        """1 for every model, because the rows are scaled."""
        return torch.ones(len(self.models))


def null_batches(
    view: NullView, batch_size: int, seed: int, *, pool_rows: int, device: str
) -> Iterator[Float[Tensor, "batch model d_model"]]:
    """Endless shuffled batches of a view's training rows, each row once per epoch, in an order that the seed decides.

    Blocks of consecutive rows are permuted and pooled; then the rows of each pool are permuted and served.

    Raises:
        StoreError: The view has no training rows.
    """
    left: Tensor | None = None
    for pool in _pools(view, seed, max(1, pool_rows // BLOCK_ROWS)):
        ready = pool if left is None else torch.cat([left, pool])
        n_whole = len(ready) // batch_size * batch_size
        for batch in ready[:n_whole].split(batch_size):
            yield batch.to(device)
        left = ready[n_whole:]


def _pools(view: NullView, seed: int, n_blocks: int) -> Iterator[Float[Tensor, "row model d_model"]]:
    usable = view.training_rows()
    starts = [start for start in range(0, view.n_rows, BLOCK_ROWS) if usable[start : start + BLOCK_ROWS].any()]
    if not starts:
        raise StoreError("The activation store has no rows to train a null on; cache more prompts.")

    def block(start: int) -> Tensor:
        stop = min(start + BLOCK_ROWS, view.n_rows)
        return view.rows(start, stop)[torch.from_numpy(usable[start:stop])]

    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(np.array(starts, dtype=np.int64))
        for first in range(0, len(order), n_blocks):
            rows = torch.cat([block(int(start)) for start in order[first : first + n_blocks]])
            yield rows[torch.from_numpy(rng.permutation(len(rows)))]
