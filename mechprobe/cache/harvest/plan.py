"""Preflight: what a cache will take, before anything is written."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechprobe.cache.config import CacheConfig, StoreDtype
from mechprobe.cache.harvest.preparation import Reading, prepare
from mechprobe.cache.store.dtypes import LARGEST_CODE, STORED_AS, row_bytes
from mechprobe.data.sources import PromptInput, as_prompts
from mechprobe.errors import ConfigError, StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site

_MARGIN = 1.02
"""Headers and the token stream, over the activations."""


@dataclass(frozen=True)
class CachePlan:
    """Rows × models × sites × width × bytes, and the room for them.

    Attributes:
        n_prompts: Prompts taken.
        n_rows: Tokens that will be cached: exact when no response is to be written, else the fewest.
        most_rows: The most that can come of it.
        widths: Model name to width.
        sites: Sites, shallow to deep.
        dtype: On disk.
        free_bytes: Free space where the store goes.
        done_bytes: Already written by an interrupted run of the same store.
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
        """Size of the store with so many rows (``n_rows`` of the plan when None)."""
        rows = self.n_rows if n_rows is None else n_rows
        width = sum(row_bytes(self.dtype, width) for width in self.widths.values())
        return int(_MARGIN * rows * len(self.sites) * width)

    def require_space(self) -> None:
        """Raise `StoreError` when the store will not fit on the disk."""
        if max(0, self.n_bytes() - int(_MARGIN * self.done_bytes)) > self.free_bytes:
            raise StoreError(
                f"The store needs {_size(self.n_bytes())} and {_size(self.free_bytes)} are free; make space, or lower "
                "max_tokens, take fewer sites, or dtype bfloat16."
            )

    def __str__(self) -> str:
        rows = f"{self.n_rows:,}" if self.n_rows == self.most_rows else f"{self.n_rows:,} to {self.most_rows:,}"
        size = _size(self.n_bytes())
        if self.n_rows != self.most_rows:
            size += f" to {_size(self.n_bytes(self.most_rows))}"
        widths = ", ".join(f"{name} {width}" for name, width in self.widths.items())
        each = f"{np.dtype(STORED_AS[self.dtype]).itemsize} bytes" + (
            " + 4 a row" if self.dtype in LARGEST_CODE else ""
        )
        return (
            f"{rows} rows ({self.n_prompts:,} prompts) × {len(self.widths)} models × {len(self.sites)} sites "
            f"({', '.join(self.sites)}) × width ({widths}) × {each} ({self.dtype}) = {size}; "
            f"{_size(self.free_bytes)} free"
        )


def plan_cache(family: ModelFamily, prompts: PromptInput, out: Path | str, config: CacheConfig) -> CachePlan:
    """What `cache_activations` with the same arguments would write.

    Raises:
        InputError: The prompts cannot be used.
        SiteError: A site does not exist.
    """
    return plan_of(family, prepare(family, as_prompts(prompts), config), Path(out))


def checked_sites(family: ModelFamily, config: CacheConfig) -> list[Site]:
    """The sites of the settings, each checked against the family."""
    sites = [site.check(family.n_layers) for site in config.parsed_sites()]
    if not sites:
        raise ConfigError('No site is given; write sites = ["resid_post.2"] or take one that `localize` names.')
    return sites


def plan_of(family: ModelFamily, reading: Reading, out: Path) -> CachePlan:
    """The plan of prepared prompts."""
    config = reading.config
    sites = checked_sites(family, config)
    fewest, most = reading.row_bounds()
    limit = config.max_tokens if config.max_tokens is not None else most
    return CachePlan(
        n_prompts=len(reading.prompts),
        n_rows=min(fewest, limit),
        most_rows=min(most, limit),
        widths=family.d_model,
        sites=tuple(str(site) for site in sites),
        dtype=config.dtype,
        free_bytes=free_bytes(out),
        done_bytes=sum(file.stat().st_size for file in out.glob("*/shard_*.h5")) if out.is_dir() else 0,
    )


def free_bytes(path: Path) -> int:
    """Free space of the file system on which ``path`` will lie."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
