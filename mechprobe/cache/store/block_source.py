"""What shuffled batches need from the rows they serve.

Batches are made of blocks of consecutive rows. Blocks are numbered in the order in which they are served, over all epochs,
so that a source can prepare them ahead.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.cache.config import StoreDtype
from mechprobe.data.stream import TokenStream
from mechprobe.types import Site

Order = Literal["blocks", "shards"]
"""``blocks`` mixes rows of all shards. ``shards`` builds every pool from whole shards, which needs no whole store."""

Split = Literal["train", "held_out", "all"]

FillRows = Callable[[np.ndarray, int], None]
"""``(out, start)``: fills ``out`` ``[row d_stored]`` with the stored rows of all models from row ``start`` on."""


@dataclass(frozen=True)
class ServingSession:
    """One iteration over batches, as a source sees it.

    Attributes:
        site: Site of the rows.
        shard_of: Block number to the index of its shard; None after the last block.
        first_block: Number of the first block.
        ended: Set when no more batches are needed.
    """

    site: Site
    shard_of: Callable[[int], int | None]
    first_block: int
    ended: threading.Event = field(default_factory=threading.Event)


@runtime_checkable
class BlockSource(Protocol):
    """Rows of several models on one token stream, which are served block by block.

    Attributes:
        folder: Folder of the store.
        stream: The tokens of every row.
        models: Names in the order of the model axis.
        dtype: Dtype of the stored rows.
    """

    folder: Path
    stream: TokenStream
    models: tuple[str, ...]
    dtype: StoreDtype

    @property
    def d_stored(self) -> int:
        """Number of entries in a stored row of all models."""
        ...

    def in_split(self, split: Split) -> Bool[np.ndarray, " row"]:
        """Mask of the rows in a split."""
        ...

    def to_float(self, stored: np.ndarray) -> Float[Tensor, "row d_all"]:
        """Stored rows as float32, models concatenated."""
        ...

    def shaped(self, flat: Float[Tensor, "row d_all"]) -> Float[Tensor, "row *model_and_d_model"]:
        """``[row model d_model]`` where all models have one width, else unchanged."""
        ...

    def serving(self, session: ServingSession) -> AbstractContextManager[None]:
        """Context in which the batches of a session are served; a source that works ahead does so inside it."""
        ...

    def window(
        self, session: ServingSession, first_block: int, shards: Sequence[int]
    ) -> AbstractContextManager[FillRows]:
        """Context that fills the blocks of one pool, in order.

        Args:
            session: The session.
            first_block: Number of the first block of the pool.
            shards: Index of the shard of each block.
        """
        ...
