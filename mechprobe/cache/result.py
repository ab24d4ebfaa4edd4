"""Records of ``mechprobe cache``: the plan of a store, what was written, and the sentences that show both."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import LARGEST_CODE, STORED_AS, row_bytes
from mechprobe.display import Displayed
from mechprobe.errors import StoreError
from mechprobe.formatting import byte_size, duration
from sae_training.weights import FAR

_MARGIN = 1.02
"""Size of a store relative to its activations: headers and the token stream add about 2 %."""


@dataclass(frozen=True, repr=False)
class CachePlan(Displayed):
    """Size of a store before it is made: rows × models × sites × width × bytes.

    Attributes:
        n_prompts: Number of prompts.
        n_rows: Number of tokens to cache. Exact when no model responds, otherwise the minimum.
        most_rows: Maximum number of tokens.
        widths: Model name to d_model.
        sites: Sites, shallow to deep.
        dtype: Dtype on disk.
        free_bytes: Free bytes on the file system of the store.
        done_bytes: Bytes that an interrupted run of the same store has already written.
    """

    n_prompts: int
    n_rows: int
    most_rows: int
    widths: dict[str, int]
    sites: tuple[str, ...]
    dtype: StoreDtype
    free_bytes: int
    done_bytes: int = 0

    def n_bytes(self, n_rows: int | None = None) -> int:
        """Size in bytes of a store with ``n_rows`` rows (those of the plan when None)."""
        rows = self.n_rows if n_rows is None else n_rows
        width = sum(row_bytes(self.dtype, width) for width in self.widths.values())
        return int(_MARGIN * rows * len(self.sites) * width)

    def require_space(self) -> None:
        """Raise `StoreError` when the store does not fit on the disk."""
        if max(0, self.n_bytes() - int(_MARGIN * self.done_bytes)) > self.free_bytes:
            raise StoreError(
                f"The store needs {byte_size(self.n_bytes())}, but only {byte_size(self.free_bytes)} are free; free some space, "
                "lower max_tokens, cache fewer sites, or use dtype bfloat16."
            )

    def to_json(self) -> dict[str, Any]:
        """The plan and its size in bytes."""
        return {**asdict(self), "n_bytes": self.n_bytes()}

    def __str__(self) -> str:
        return self._in_short()

    def _in_short(self) -> str:
        rows = f"{self.n_rows:,}" if self.n_rows == self.most_rows else f"{self.n_rows:,} to {self.most_rows:,}"
        size = byte_size(self.n_bytes())
        if self.n_rows != self.most_rows:
            size += f" to {byte_size(self.n_bytes(self.most_rows))}"
        widths = ", ".join(f"{name} {width}" for name, width in self.widths.items())
        per_row = " + 4 per row" if self.dtype in LARGEST_CODE else ""
        return (
            f"{rows} rows ({self.n_prompts:,} prompts) × {len(self.widths)} models × {len(self.sites)} sites "
            f"({', '.join(self.sites)}) × width ({widths}) × {np.dtype(STORED_AS[self.dtype]).itemsize} bytes{per_row} "
            f"({self.dtype}) = {size}; {byte_size(self.free_bytes)} free"
        )


@dataclass(frozen=True, slots=True)
class ModelRates:
    """Measured speed of one model.

    Attributes:
        load_s: Seconds to load the weights.
        token_s: Seconds per token (padding included) of a forward pass up to the deepest site.
        generated_s: Seconds per generated token; 0 where the model does not respond.
    """

    load_s: float
    token_s: float
    generated_s: float = 0.0


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated time to cache in one process, without the time to write to disk.

    Attributes:
        seconds: Estimate if every response ended at once; without responses, the estimate itself.
        most_seconds: Estimate if every response had its maximum length.
        probe_seconds: Duration of the measurement in seconds.
        rates: Model name to its measured speed. Models of one architecture are measured once.
    """

    seconds: float
    most_seconds: float
    probe_seconds: float
    rates: dict[str, ModelRates]

    def __str__(self) -> str:
        low, high = duration(self.seconds), duration(self.most_seconds)
        span = low if low == high else f"{low} to {high}"
        return f"{span} in one process, without disk time (estimated from a {self.probe_seconds:.1f} s probe)"


@dataclass(frozen=True, slots=True)
class PartResult:
    """Work of one part (``--part I/N``).

    Attributes:
        n_made: Number of shards written.
        n_found: Number of its shards that existed already.
        next_step: What to run next, as a sentence.
    """

    n_made: int
    n_found: int
    next_step: str


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Counts in the manifest of a store.

    Attributes:
        rows: Number of cached tokens.
        held_out_rows: Number of rows that are held out from training.
        response_rows: Number of rows that are response tokens.
        sequences: Number of sequences.
        sequences_cut: Number of sequences that were cut because they were too long.
        shards: Number of shards per model.
        bytes: Size of all shards in bytes.
        prompts_dropped: Number of prompts that were left out because they were too long.
        whole_rows: Number of rows in the whole token stream; None when the store holds all of them.
    """

    rows: int
    held_out_rows: int
    response_rows: int
    sequences: int
    sequences_cut: int
    shards: int
    bytes: int
    prompts_dropped: int
    whole_rows: int | None = None

    @classmethod
    def of(cls, store: ActivationStore) -> "CacheCounts":
        """The counts in the manifest."""
        return cls(**store.manifest["counts"])

    def to_json(self) -> dict[str, int]:
        """The counts; ``whole_rows`` is left out when the store holds all rows."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def far_sentence(store: ActivationStore) -> str:
    """The rows of enormous norm and the setting that leaves them out, in one sentence; empty where there are none."""
    norms = store.norms
    if norms is None or not (norms.far.n_rows or norms.far.n_dropped):
        return ""
    far, above = norms.far, store.settings.get("drop_norm_above")
    if above is not None:
        return f"{far.n_dropped:,} of {store.n_rows:,} rows have more than {above:g} times the median norm and are dropped."
    found = f"{far.n_rows:,} of {store.n_rows:,} rows have more than {FAR:g} times the median norm"
    if far.first_positions is not None:
        place = (
            "at the first position" if far.first_positions == 1 else f"among the first {far.first_positions} positions"
        )
        return f"{found}, {place} of their sequences (attention sinks); set cache.drop_first_positions={far.first_positions}."
    texts = ", ".join(f"{text!r} ({count:,})" for text, count in far.tokens[:3])
    return f"{found}, at scattered tokens such as {texts}; set cache.drop_norm_above={FAR:g}."
