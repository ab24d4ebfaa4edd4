"""The dictionaries of the nulls: trained like the run's crosscoder, on views of its store that make no feature specific."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.stage import ProgressLine
from mechprobe.errors import ConfigError, StoreError
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import FeatureTable, build_table
from mechprobe.features.table.intervals import sequence_groups
from mechprobe.features.validation.retrain import Retraining, TabledDictionary
from mechprobe.progress import progress
from sae_training import Crosscoder, CrosscoderConfig, train

BLOCK_ROWS = 512


class NullView:
    """Activations of a run's models as one of the nulls defines them: a `RowStore` that writes nothing."""

    def __init__(
        self, store: ActivationStore, models: tuple[str, ...], site: str, *, within: range | None = None
    ) -> None:
        self._store, self.models, self._site, self.within = store, models, site, within
        self.n_rows, self.tokens, self.dropped = store.n_rows, store.tokens, store.dropped

    def rows(self, start: int, stop: int, site: str | None = None) -> Float[Tensor, "row model d_model"]:
        """Consecutive rows, at the view's site unless another is named."""
        raise NotImplementedError

    def scale(self) -> Float[Tensor, " model"]:
        """Divisor of each model's activations."""
        raise NotImplementedError

    def training_rows(self) -> Bool[ndarray, " row"]:
        """Rows that a dictionary may be trained on; where ``within`` is set, only those inside it."""
        kept = self._store.in_split("train").copy()
        if self.within is not None:
            kept[: self.within.start] = kept[self.within.stop :] = False
        return kept


class IdenticalModels(NullView):
    """Every model has the activations of base."""

    def rows(self, start: int, stop: int, site: str | None = None) -> Float[Tensor, "row model d_model"]:
        """The rows of base, repeated for each model."""
        return self._store.rows(start, stop, site or self._site).expand(-1, len(self.models), -1)

    def scale(self) -> Float[Tensor, " model"]:
        """The scale of base, for each model."""
        return self._store.scale(self._site).expand(len(self.models)).contiguous()


class ShuffledLabels(NullView):
    """Each model's activations are divided by its scale, and the names of the models are permuted for every sequence.

    Raises:
        ConfigError: The models have different widths, so their activations cannot be exchanged.
    """

    def __init__(self, store: ActivationStore, site: str, seed: int) -> None:
        super().__init__(store, store.models, site)
        if len(set(store.widths.values())) > 1:
            raise ConfigError(f"Models of different widths ({store.widths}) cannot swap labels; choose another null.")
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
    view: NullView, batch_size: int, seed: int, *, pool_rows: int
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
        yield from ready[:n_whole].split(batch_size)
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


class NullDictionaries:
    """Trains dictionaries into sub-folders of a stage folder; ``outputs`` are the files written, relative to it."""

    def __init__(self, folder: Path, retraining: Retraining) -> None:
        self.folder, self.retraining = folder, retraining
        self.site = str(retraining.config.site)
        self.outputs: list[str] = []

    def identical(self) -> FeatureTable:
        """The table of a dictionary for which every model is base."""
        return self._dictionary("dictionary", 1, self._base_alone())[1]

    def shuffled(self) -> FeatureTable:
        """The table of a dictionary for which the models' names are shuffled for every sequence."""
        view = ShuffledLabels(self.retraining.store, self.site, self.retraining.nulls.seed)
        return self._dictionary("dictionary", 1, view)[1]

    def halves(self) -> tuple[TabledDictionary, TabledDictionary]:
        """Two dictionaries of base, each trained and described on one half of the sequences."""
        store = self.retraining.store
        groups = sequence_groups(np.asarray(store.tokens.sample), range(store.n_rows), 2)
        first, second = (
            self._dictionary(f"half_{number}", number, self._base_alone(half), half)
            for number, half in enumerate(groups, start=1)
        )
        return first, second

    def _base_alone(self, within: range | None = None) -> IdenticalModels:
        store = ActivationStore.open(self.retraining.cache, models=[self.retraining.config.base])
        return IdenticalModels(store, self.retraining.training.shape.model_names, self.site, within=within)

    def _shape(self, shape: CrosscoderConfig) -> CrosscoderConfig:
        """The shape with the width of base for every model. Limits of norms do not hold for the activations of a null."""
        shape = shape.replace(norm_limits=())
        width = self.retraining.store.widths[self.retraining.config.base]
        return shape if shape.widths == (width,) * shape.n_models else shape.replace(d_model=width)

    def _dictionary(self, name: str, number: int, view: NullView, rows: range | None = None) -> TabledDictionary:
        """Train the further dictionary ``number`` on a view, and describe its features on ``rows`` of it."""
        training, config = self.retraining.again(number), self.retraining.config
        crosscoder = Crosscoder(self._shape(training.shape)).to(self.retraining.device)
        crosscoder.set_scale(view.scale())
        schedule = training.schedule
        batches = null_batches(view, schedule.batch_size, schedule.seed, pool_rows=training.pool_rows)
        with progress(schedule.trained_tokens, f"training {name}", unit="tokens") as advance:
            show = ProgressLine(advance, crosscoder.config)
            train(crosscoder, batches, schedule, out=self.folder / name, on_log=show, on_step=show.count)
        if rows is None and config.max_rows is not None:
            rows = range(min(config.max_rows, view.n_rows))
        table = build_table(crosscoder, collect(crosscoder, view, config, rows=rows), config)
        files = ["config.json", "weights.safetensors", *table.save(self.folder / name)]
        self.outputs += [f"{name}/{file}" for file in files]
        return crosscoder, table
