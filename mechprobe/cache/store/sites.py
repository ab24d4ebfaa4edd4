"""Batches of several sites of a store at once: one row order, the sources side by side."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.batches import ShuffledBatches, Split
from mechprobe.cache.store.source import RowSource
from mechprobe.errors import StoreError
from mechprobe.types import Site


class SiteBatches:
    """Shuffled batches ``[batch source d_model]`` (``[batch d_all]`` where widths differ), sources model by model.

    The order of a store's batches depends on the seed and the position alone, so one stream per site gives the same rows;
    each keeps a pool of its own. With one site the batches are the store's own. As a context it ends, on leaving,
    whatever reads ahead.
    """

    def __init__(
        self,
        store: RowSource,
        sites: Sequence[Site],
        batch_size: int,
        seed: int,
        *,
        split: Split = "train",
        epochs: int | None = None,
        pool_rows: int = 65536,
    ) -> None:
        if len(sites) > 1 and store.mode != "cache":
            raise StoreError(f"Mode '{store.mode}' runs the models for one site; several sites need a whole store.")
        self._widths = list(store.widths.values())
        self._streams: list[ShuffledBatches] = [
            store.batches(batch_size, seed, site=site, split=split, epochs=epochs, pool_rows=pool_rows)
            for site in sites
        ]
        self.n_rows = self._streams[0].n_rows

    def __enter__(self) -> "SiteBatches":
        return self

    def __exit__(self, *raised: object) -> None:
        for stream in self._streams:
            stream.__exit__(*raised)

    def __iter__(self) -> Iterator[Tensor]:
        for parts in zip(*self._streams, strict=True):
            yield parts[0] if len(parts) == 1 else side_by_side(parts, self._widths)

    def state_dict(self) -> dict[str, Any]:
        """The position of every site's stream; that of the one stream for one site."""
        states = [stream.state_dict() for stream in self._streams]
        return states[0] if len(states) == 1 else {"sites": states}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position."""
        states = state.get("sites", [state])
        if len(states) != len(self._streams):
            raise StoreError(
                f"The saved position is of {len(states)} sites, these batches have {len(self._streams)}; "
                "resume with the same settings."
            )
        for stream, part in zip(self._streams, states, strict=True):
            stream.load_state_dict(part)


def side_by_side(sites: Sequence[Tensor], widths: Sequence[int]) -> Float[Tensor, "batch *source_and_d_model"]:
    """One batch per site, of all models, to one batch of all sources: the sites of the first model first."""
    if sites[0].ndim == 3:
        return torch.stack(list(sites), dim=2).flatten(1, 2)
    by_site = [site.split(list(widths), dim=1) for site in sites]
    return torch.cat([part for model in zip(*by_site, strict=True) for part in model], dim=1)
