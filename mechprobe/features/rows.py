"""What this room needs of an activation store, and reading it in order."""

from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.progress import progress
from sae_training import Crosscoder


@runtime_checkable
class RowStore(Protocol):
    """Activations of all models on the same tokens, one row per kept token."""

    models: Any
    n_rows: int
    tokens: Any
    """Its array ``sample`` has the sequence of every row; contexts also need ``token_id`` and ``is_response``."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` as ``[row model d_model]``."""
        ...


def row_batches(
    store: RowStore, config: FeaturesConfig, *, groups: Sequence[range], label: str
) -> Generator[tuple[int, Float[Tensor, "batch model d_model"]]]:
    """Yield ``(first row, activations)`` over ranges of rows of a store, with a progress bar. No batch spans two ranges."""
    options = {} if config.site is None else {"site": config.site}
    with progress(sum(map(len, groups)), label, unit="rows") as advance:
        for rows in groups:
            for start in range(rows.start, rows.stop, config.batch_rows):
                stop = min(start + config.batch_rows, rows.stop)
                yield start, store.rows(start, stop, **options)
                advance(stop - start)


def check_store(crosscoder: Crosscoder, store: RowStore) -> None:
    """Raise `StoreError` where crosscoder and store have different models."""
    if tuple(store.models) != tuple(crosscoder.model_names):
        raise StoreError(
            f"The activation store has the models {', '.join(store.models)}, but the crosscoder has "
            f"{', '.join(crosscoder.model_names)}; give the store that the crosscoder was trained on."
        )
