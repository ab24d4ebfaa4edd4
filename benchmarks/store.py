"""How fast the activation store is read, against a raw memmap of the same bytes in the same run.

python benchmarks/store.py [--rows 131072] [--d-model 512]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mechprobe.activations.numbers import STORED_AS
from mechprobe.activations.shards import INDEX, TOKENS, write_shard, write_tokens
from mechprobe.activations.store import ActivationStore
from mechprobe.artifacts import Stage, write_json
from mechprobe.data.stream import build_stream
from mechprobe.data.tokens import TokenSequence

MODELS = ("base", "sft", "rl")
SITE = "resid_post.0"


def build_store(folder: Path, n_rows: int, d_model: int) -> ActivationStore:
    """A bfloat16 store of random numbers, written by the functions that the cache writes with."""
    from dataclasses import asdict

    sequences = [TokenSequence(f"s{i}", f"s{i}", None, None, tuple(range(1, 65)), ()) for i in range(n_rows // 64)]
    stream = build_stream(sequences, special_ids=[0], tokenizer_fingerprint="t", held_out_frac=0.05)
    rng = np.random.default_rng(0)
    block = rng.normal(size=(len(stream.shards[0].rows), d_model)).astype(np.float32)
    stored = torch.from_numpy(block).bfloat16().view(torch.uint16).numpy()
    config = {"sites": [SITE], "dtype": "bfloat16"}
    fingerprints = dict.fromkeys(MODELS, "f")
    with Stage.open(folder, name="cache", config=config, models=fingerprints) as stage:
        write_tokens(folder, stream)
        for name in MODELS:
            (folder / name).mkdir()
            records = [
                write_shard(
                    folder / name,
                    shard,
                    {SITE: stored[: len(shard.rows)]},
                    model=name,
                    dtype="bfloat16",
                    stream_hash=stream.hash,
                    norms=({SITE: 1.0 * len(shard.rows)}, len(shard.rows)),
                )
                for shard in stream.shards
            ]
            index = {"fingerprint": "f", "d_model": d_model, "stream": stream.hash}
            write_json(folder / name / INDEX, {**index, "shards": [asdict(record) for record in records]})
        outputs = [TOKENS, *(f"{name}/{INDEX}" for name in MODELS)]
        stage.finish(outputs=outputs, results={"models": list(MODELS), "stream": stream.hash})
    return ActivationStore.open(folder)


def rate(read: Callable[[], int], repeats: int = 7) -> float:
    """Median megabytes a second of ``read``, which returns the bytes it read."""
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        n_bytes = read()
        rates.append(n_bytes / (time.perf_counter() - started) / 1e6)
    return statistics.median(rates)


def compare(store: ActivationStore, raw: dict[str, np.ndarray], block_rows: int, order: np.ndarray) -> list[float]:
    """Rates of the store and of the raw memmaps over the same blocks, interleaved by repeat."""

    def from_store() -> int:
        return sum(store.stored_bytes(start * block_rows, (start + 1) * block_rows).nbytes for start in order.tolist())

    def from_raw() -> int:
        n_bytes = 0
        for start in order.tolist():
            parts = [raw[name][start * block_rows : (start + 1) * block_rows] for name in MODELS]
            n_bytes += np.concatenate(parts, axis=1).nbytes
        return n_bytes

    from_store(), from_raw()
    return [rate(from_store), rate(from_raw)]


def main() -> None:
    """Print one line a measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=131072)
    parser.add_argument("--d-model", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = build_store(Path(scratch) / "cache", arguments.rows, arguments.d_model)
        raw = {}
        for name in MODELS:
            path = Path(scratch) / f"{name}.bin"
            with path.open("wb") as file:
                for start in range(0, store.n_rows, 8192):
                    stop = min(start + 8192, store.n_rows)
                    part = store.rows_of(name, start, stop).bfloat16().view(torch.uint16).numpy()
                    file.write(part.tobytes())
            shape = (store.n_rows, arguments.d_model)
            raw[name] = np.memmap(path, dtype=STORED_AS["bfloat16"], mode="r", shape=shape)
        rng = np.random.default_rng(1)
        for label, block_rows, shuffled in (("sequential 8192", 8192, False), ("random 512", 512, True)):
            order = np.arange(store.n_rows // block_rows)
            found, reference = compare(store, raw, block_rows, rng.permutation(order) if shuffled else order)
            print(f"{label:<16} store {found:8,.0f} MB/s   memmap {reference:8,.0f} MB/s   {found / reference:.0%}")

        batches = store.batches(2048, epochs=1)

        def batch_rate() -> int:
            batches.rows_served = 0
            return sum(batch.numel() * 2 for batch in batches)

        speed = rate(batch_rate, repeats=3)
        row_bytes = 2 * store.d_all
        print(f"{'shuffled batches':<16} {speed:8,.0f} MB/s   {speed * 1e6 / row_bytes:,.0f} tokens/s (float32 out)")


if __name__ == "__main__":
    main()
