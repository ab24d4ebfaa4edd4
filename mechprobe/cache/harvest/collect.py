"""Run every model over the shards of the token stream, and write the shards that are missing."""

from mechprobe.cache.harvest.forward_batches import ModelReader, choose_reader, collect_shard
from mechprobe.cache.harvest.plan import CacheWork
from mechprobe.cache.store.shards import finished_shard, write_shard
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, progress
from mechprobe.ranks import Ranks


def collect_shards(work: CacheWork, stream: TokenStream, ranks: Ranks) -> int:
    """Write the missing shards of every model that belong to this process; returns how many were written.

    Raises:
        StoreError: The disk is full, an activation does not fit the dtype, or a sequence does not fit in memory.
    """
    n_rows = sum(len(shard.rows) for shard in stream.shards if ranks.owns(shard.index))
    n_made = 0
    with progress(n_rows * len(work.family), "caching", unit="tokens", quiet=not ranks.is_first) as advance:
        for model in work.family:
            n_made += _ModelCollector(model, work, stream).run(ranks, advance)
            if work.config.models_in_memory == "one":
                model.release()
    return n_made


class _ModelCollector:
    """Writes the shards of one model."""

    def __init__(self, model: LanguageModel, work: CacheWork, stream: TokenStream) -> None:
        self.model, self.work, self.stream = model, work, stream
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
            advance(len(shard.rows), model=self.model.name)
        return n_made

    def _make(self, shard: ShardRange) -> None:
        config, stream, sites = self.work.config, self.stream, self.work.sites
        reader = self._reader = self._reader or choose_reader(self.model, stream, sites, config)
        arrays = collect_shard(self.model, stream, shard, sites, config, reader.residuals)
        write_shard(
            self.folder,
            shard,
            arrays,
            model=self.model.name,
            dtype=config.dtype,
            stream=stream,
            forward={"reader": reader.kind, "proof": reader.proof, "batch_tokens": config.batch_tokens},
            keep_norms=True,
        )
