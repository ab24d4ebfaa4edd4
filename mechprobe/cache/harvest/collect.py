"""Run every model over the shards of the token stream, and write the shards that are missing."""

from collections.abc import Callable
from typing import TypeVar

from mechprobe.cache.harvest.forward_batches import ModelReader, choose_reader, collect_shard
from mechprobe.cache.harvest.plan import CacheWork
from mechprobe.cache.harvest.ranks import Ranks
from mechprobe.cache.store.shards import finished_shard, write_shard
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.models.devices import with_less_memory
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, progress

T = TypeVar("T")


def collect_shards(work: CacheWork, stream: TokenStream, ranks: Ranks) -> int:
    """Write the missing shards of every model that belong to this process; returns how many were written.

    Raises:
        StoreError: The disk is full, an activation does not fit the dtype, or a sequence does not fit in memory.
    """
    n_rows = sum(len(shard.rows) for shard in stream.shards if ranks.owns(shard.index))
    n_made, batch_tokens = 0, work.config.batch_tokens
    with progress(n_rows * len(work.family), "caching", unit="tokens", quiet=not ranks.is_first) as advance:
        for model in work.family:
            collector = _ModelCollector(model, work, stream, batch_tokens)
            n_made += collector.run(ranks, advance)
            batch_tokens = collector.batch_tokens
            if work.config.models_in_memory == "one":
                model.release()
    return n_made


class _ModelCollector:
    """Writes the shards of one model, with smaller batches after memory has run out."""

    def __init__(self, model: LanguageModel, work: CacheWork, stream: TokenStream, batch_tokens: int) -> None:
        self.model, self.work, self.stream = model, work, stream
        self.batch_tokens = batch_tokens
        self.folder = work.out / model.name
        self._reader: ModelReader | None = None

    def run(self, ranks: Ranks, advance: Advance) -> int:
        """Write the missing shards of this process; returns their number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        n_made = 0
        for shard in self.stream.shards:
            if not ranks.owns(shard.index):
                continue
            record = finished_shard(self.folder, shard, self.stream.hash)
            if record is None:
                self._make(shard)
                n_made += 1
            else:  # a reduced size applies to all later shards, also when an interrupted run resumes
                self.batch_tokens = min(self.batch_tokens, int(record.forward.get("batch_tokens", self.batch_tokens)))
            advance(len(shard.rows), model=self.model.name)
        return n_made

    def _make(self, shard: ShardRange) -> None:
        config, stream, sites = self.work.config, self.stream, self.work.sites
        reader = self._reader = self._reader or self._within_memory(
            lambda size: choose_reader(self.model, stream, sites, config.replace(batch_tokens=size)), stream.shards[0]
        )
        arrays = self._within_memory(
            lambda n: collect_shard(self.model, stream, shard, sites, config.replace(batch_tokens=n), reader.residuals),
            shard,
        )
        write_shard(
            self.folder,
            shard,
            arrays,
            model=self.model.name,
            dtype=config.dtype,
            stream=stream,
            forward={"reader": reader.kind, "proof": reader.proof, "batch_tokens": self.batch_tokens},
            keep_norms=True,
        )

    def _within_memory(self, work: Callable[[int], T], shard: ShardRange) -> T:
        sequences = (self.stream.sequences[index] for index in shard.sequences)
        result, self.batch_tokens = with_less_memory(
            work,
            self.batch_tokens,
            smallest=max(len(sequence.ids) for sequence in sequences),
            name="batch_tokens",
            where=f"Model {self.model.name}, shard {shard.index}",
        )
        return result
