"""Batches of several sites of a store at once: the same rows at every site, concatenated by model."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.batches import ShuffledBatches, Split
from mechprobe.cache.store.row_source import RowSource
from mechprobe.errors import StoreError
from mechprobe.types import Site


class SiteBatches:
    """Shuffled batches ``[batch source d_model]``, or ``[batch d_all]`` where widths differ; sources go model by model.

    The order of batches depends only on the seed and the position, so one stream per site serves the same rows. Each
    stream has its own pool. With one site the batches are those of the source. Leaving the context ends background work.
    """

    def __init__(
        self,
        source: RowSource,
        sites: Sequence[Site],
        batch_size: int,
        seed: int,
        *,
        split: Split = "train",
        epochs: int | None = None,
        pool_rows: int = 65536,
    ) -> None:
        if len(sites) > 1 and source.mode != "cache":
            raise StoreError(f"Mode '{source.mode}' runs the models for one site; several sites need a whole store.")
        self._widths = list(source.widths.values())
        self._streams: list[ShuffledBatches] = [
            source.batches(batch_size, seed, site=site, split=split, epochs=epochs, pool_rows=pool_rows)
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
            yield parts[0] if len(parts) == 1 else concat_sites(parts, self._widths)

    def state_dict(self) -> dict[str, Any]:
        """The position of every site's stream; with one site, the position of its stream."""
        states = [stream.state_dict() for stream in self._streams]
        return states[0] if len(states) == 1 else {"sites": states}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a position."""
        states = state.get("sites", [state])
        if len(states) != len(self._streams):
            raise StoreError(
                f"The saved position covers {len(states)} sites, these batches cover {len(self._streams)}; "
                "resume with the same settings."
            )
        for stream, part in zip(self._streams, states, strict=True):
            stream.load_state_dict(part)


def concat_sites(sites: Sequence[Tensor], widths: Sequence[int]) -> Float[Tensor, "batch *source_and_d_model"]:
    """Combine one batch per site into one batch of all sources, ordered by model and then by site."""
    if sites[0].ndim == 3:
        return torch.stack(list(sites), dim=2).flatten(1, 2)
    by_site = [site.split(list(widths), dim=1) for site in sites]
    return torch.cat([part for model in zip(*by_site, strict=True) for part in model], dim=1)
