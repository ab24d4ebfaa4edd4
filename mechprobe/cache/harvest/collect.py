"""Run every model over the shards of the token stream, and write the shards that are missing."""

from functools import partial

from mechprobe.cache.harvest.forward_batches import ModelReader, choose_reader, collect_shard
from mechprobe.cache.harvest.plan import ShardWork
from mechprobe.cache.store.background import Background
from mechprobe.cache.store.shards import finished_shard, write_shard
from mechprobe.data.stream import ShardRange, TokenStream
from mechprobe.models.load import LanguageModel
from mechprobe.progress import Advance, Meter, activity, progress
from mechprobe.ranks import Ranks


def collect_shards(work: ShardWork, stream: TokenStream, ranks: Ranks) -> int:
    """Write the missing shards of every model that belong to this process; returns how many were written.

    Raises:
        StoreError: The disk is full, an activation does not fit the dtype, or a sequence does not fit in memory.
    """
    n_rows = sum(len(shard.rows) for shard in stream.shards if ranks.owns(shard.index))
    n_made = 0
    with (
        progress(n_rows * len(work.family), "caching", unit="tokens", quiet=not ranks.is_first) as advance,
        Background("writer") as writer,  # at most one shard is written while the models make the next
    ):
        for model in work.family:
            n_made += _ModelCollector(model, work, stream, writer).run(ranks, advance)
            if work.config.models_in_memory == "one":
                model.release()
    return n_made


class _ModelCollector:
    """Writes the shards of one model."""

    def __init__(self, model: LanguageModel, work: ShardWork, stream: TokenStream, writer: Background) -> None:
        self.model, self.work, self.stream, self.writer = model, work, stream, writer
        self.folder = work.out / model.name
        self._reader: ModelReader | None = None

    def run(self, ranks: Ranks, advance: Meter) -> int:
        """Write the missing shards of this process; returns their number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        n_made = 0
        for shard in self.stream.shards:
            if not ranks.owns(shard.index):
                continue
            record = finished_shard(self.folder, shard, self.stream.hash)
            if record is None:
                self._make(shard, partial(advance, model=self.model.name))
                n_made += 1
            else:
                advance.found(len(shard.rows), model=self.model.name)
        return n_made

    def _make(self, shard: ShardRange, advance: Advance) -> None:
        config, stream, sites = self.work.config, self.stream, self.work.sites
        if self._reader is None:
            with activity(f"comparing the readers of {self.model.name}"):
                self._reader = choose_reader(self.model, stream, sites, config)
        reader = self._reader
        arrays = collect_shard(self.model, stream, shard, sites, config, reader.residuals, advance)
        with activity("waiting for the shard before, which is being written"):
            self.writer.submit(
                write_shard,
                self.folder,
                shard,
                arrays,
                model=self.model.name,
                dtype=config.dtype,
                stream=stream,
                forward={"reader": reader.kind, "proof": reader.proof, "batch_tokens": config.batch_tokens},
                keep_norms=True,
            )
