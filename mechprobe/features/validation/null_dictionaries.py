"""The dictionaries of the nulls: trained like the run's crosscoder, on data in which no feature can be specific."""

from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import FeatureTable, build_table
from mechprobe.features.table.intervals import sequence_groups
from mechprobe.features.validation.null_views import IdenticalModels, NullView, ShuffledLabels, null_batches
from mechprobe.features.validation.retrain import Retraining, TabledDictionary
from mechprobe.progress import progress
from sae_training import Crosscoder, CrosscoderConfig, train


class NullDictionaries:
    """Trains dictionaries into sub-folders of a stage folder.

    Attributes:
        outputs: Files written, relative to the folder.
    """

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
        """Base under the name of every model."""
        store = ActivationStore.open(self.retraining.cache, models=[self.retraining.config.base])
        return IdenticalModels(store, self.retraining.training.shape.model_names, self.site, within=within)

    def _shape(self, shape: CrosscoderConfig) -> CrosscoderConfig:
        """The shape with the width of base for every model."""
        width = self.retraining.store.widths[self.retraining.config.base]
        return shape if shape.widths == (width,) * shape.n_models else shape.replace(d_model=width)

    def _dictionary(self, name: str, number: int, view: NullView, rows: range | None = None) -> TabledDictionary:
        """Train the further dictionary ``number`` on a view, and describe its features on ``rows`` of it."""
        training, config, device = self.retraining.again(number), self.retraining.config, self.retraining.device
        crosscoder = Crosscoder(self._shape(training.shape)).to(device)
        crosscoder.set_scale(view.scale())
        schedule = training.schedule
        batches = null_batches(view, schedule.batch_size, schedule.seed, pool_rows=training.pool_rows, device=device)
        with progress(schedule.n_tokens, f"training {name}", unit="tokens") as advance:
            seen = 0

            def show(metrics: dict[str, Any]) -> None:
                nonlocal seen
                advance(metrics["tokens"] - seen)
                seen = metrics["tokens"]

            train(crosscoder, batches, schedule, out=self.folder / name, on_log=show)
        if rows is None and config.max_rows is not None:
            rows = range(min(config.max_rows, view.n_rows))
        table = build_table(crosscoder, collect(crosscoder, view, config, rows=rows), config)
        files = ["config.json", "weights.safetensors", *table.save(self.folder / name)]
        self.outputs += [f"{name}/{file}" for file in files]
        return crosscoder, table
