"""Read speed of the activation store, and training speed from the store compared with training from memory.

    python -m benchmarks.store --out artifacts/benchmarks/store_cpu.json

Reads: the store, a raw memmap and safetensors slices, on the same bytes, in one run, with files in the page cache.
Batches: shuffled float32 batches of the store, and of a per-token Dataset in a torch DataLoader (as peer libraries do).
Training: from the store, and from the same batches held in memory; both end with the same weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.random_store import MODELS, SEED, build_store, raw_copies
from benchmarks.timing import Clock, Times, ratios, spread, take_turns, wanted
from mechprobe.cache.store.activation_store import ActivationStore
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, Trainer
from sae_training.stream import BatchStream

TRAIN = {"d_sae": 2048, "k": 32, "batch_size": 4096}
QUICK_TRAIN = {"d_sae": 64, "k": 4, "batch_size": 256}
GOALS = {"sequential_8192": 0.95, "random_512": 0.9}
"""Share of the memmap's speed that is wanted, as the median of 45 rounds on a machine without other load."""
_READ_ROUNDS = 5
"""Rounds of reading per round of training, because a round of reading is short and its time varies by half."""
_PACKAGES = ("torch", "numpy", "h5py", "safetensors")

Blocks = list[tuple[int, int]]


def measure_reads(store: ActivationStore, folder: Path, rounds: int) -> dict[str, Any]:
    """Megabytes per second of consecutive 8,192-row slices and of random 512-row blocks, models concatenated."""
    mapped, tensors = raw_copies(store, folder)
    found = {}
    with ExitStack() as stack:
        # safetensors reads bfloat16 and uint16 in the same way. Files are opened once, like the maps.
        slices = {
            name: stack.enter_context(safe_open(path, framework="numpy")).get_slice("x")
            for name, path in tensors.items()
        }
        sources: dict[str, Callable[[int, int], np.ndarray]] = {
            "store": store.stored_bytes,
            "memmap": lambda start, stop: concat_models(mapped, store, start, stop),
            "safetensors": lambda start, stop: concat_models(slices, store, start, stop),
        }
        for label, rows, shuffled in (("sequential_8192", 8192, False), ("random_512", 512, True)):
            blocks = _blocks(store.n_rows, rows, shuffled)
            for start, stop in blocks[:3]:
                first = sources["store"](start, stop)
                assert all(np.array_equal(first, read(start, stop)) for read in sources.values()), "bytes differ"
            turns = {name: _Reads(read, blocks) for name, read in sources.items()}
            times = take_turns(turns, rounds, Clock())
            found[label] = _rates(times, unit="mb_per_s", amount=turns["store"].n_bytes / 1e6, reference="memmap")
    return found


def concat_models(sources: Mapping[str, Any], store: ActivationStore, start: int, stop: int) -> np.ndarray:
    """The rows of all models in one array, copied once."""
    out, column = np.empty((stop - start, store.d_all), dtype=np.uint16), 0
    for name, width in store.widths.items():
        out[:, column : column + width] = sources[name][start:stop]
        column += width
    return out


def _blocks(n_rows: int, rows: int, shuffled: bool) -> Blocks:
    rows = min(rows, n_rows)
    starts = rows * np.arange(n_rows // rows)
    if shuffled:
        starts = np.random.default_rng(SEED).permutation(starts)
    return [(start, start + rows) for start in starts.tolist()]


class _Reads:
    """A contestant that reads all blocks once."""

    def __init__(self, read: Callable[[int, int], np.ndarray], blocks: Blocks) -> None:
        self.read, self.blocks = read, blocks
        self.n_bytes = 0

    def __call__(self) -> None:
        self.n_bytes = sum(self.read(start, stop).nbytes for start, stop in self.blocks)


class PerTokenDataset(Dataset[tuple[Tensor, ...]]):
    """One token at a time from mapped files, one tensor per model: the usual input of a DataLoader."""

    def __init__(self, mapped: Mapping[str, np.ndarray], n_rows: int) -> None:
        self.mapped = [mapped[name] for name in MODELS]
        self.n_rows = n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part[row].copy()).view(torch.bfloat16) for part in self.mapped)


def measure_batches(
    store: ActivationStore, mapped: Mapping[str, np.ndarray], rounds: int, *, n_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Tokens per second of shuffled float32 batches ``[batch model d_model]``; each loader serves ``n_tokens`` tokens."""
    n_tokens = min(n_tokens, store.n_rows)
    loader = DataLoader(
        PerTokenDataset(mapped, n_tokens),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(SEED),
    )
    batches = iter(store.batches(batch_size, SEED, split="all", epochs=None))

    def from_store() -> int:
        return sum(len(next(batches)) for _ in range(n_tokens // batch_size))

    def from_loader() -> int:
        return sum(len(torch.stack(parts, dim=1).float()) for parts in loader)

    times = take_turns({"store": from_store, "per_token_dataloader": from_loader}, rounds, Clock())
    served = {"store": n_tokens // batch_size * batch_size, "per_token_dataloader": n_tokens}
    rates = {name: [served[name] / seconds for seconds in found.wall] for name, found in times.items()}
    return {
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "store_over_dataloader": ratios(rates["store"], rates["per_token_dataloader"]),
    }


class Training:
    """Some steps of a trainer on the batches of a stream, with the code that `sae_training.train` uses."""

    def __init__(self, batches: Any, d_model: int, shape: Mapping[str, int], steps: int) -> None:
        config = CrosscoderConfig(n_models=len(MODELS), d_model=d_model, d_sae=shape["d_sae"], k=shape["k"])
        crosscoder = Crosscoder(config)
        crosscoder.set_scale([1.0] * len(MODELS))
        self.trainer = Trainer(crosscoder, TrainConfig(n_tokens=10**9, batch_size=shape["batch_size"]))
        self.stream = BatchStream(batches, crosscoder, shape["batch_size"])
        self.steps = steps

    def __call__(self) -> None:
        """Take the steps."""
        for _ in range(self.steps):
            batch = self.stream.next()
            assert batch is not None, "the stream does not end"
            self.trainer.step(batch)


def repeated(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Repeat the batches without end."""
    while True:
        yield from batches


def measure_training(
    store: ActivationStore, rounds: int, *, shape: Mapping[str, int], pool_rows: int
) -> dict[str, Any]:
    """Tokens per second of training from the store and from memory.

    A round spans a whole pool, so that it includes the time to read the pool. Memory holds the first batches of the
    store, float32 and in the same order, up to the size of the store, and then repeats them. As long as both have served
    the same batches, their weights are equal, which is checked.
    """
    size = shape["batch_size"]
    steps = max(1, pool_rows // size)
    options = {"split": "all", "pool_rows": pool_rows, "epochs": None}
    n_held = max(steps, store.n_rows // size)
    source = iter(store.batches(size, SEED, **options))
    held = [next(source).clone() for _ in range(n_held)]
    turns = {
        "store": Training(store.batches(size, SEED, **options), store.d_model, shape, steps),
        "memory": Training(repeated(held), store.d_model, shape, steps),
    }
    for turn in turns.values():  # also warms up
        turn()
    first, second = (turn.trainer.crosscoder.fingerprint for turn in turns.values())
    assert first == second, "the store and memory served different batches"
    times = take_turns(turns, rounds, Clock(), warm_up=0)
    rates = _rates(times, unit="tokens_per_s", amount=steps * size, reference="memory")
    return {"shape": {**shape, "d_model": store.d_model, "pool_rows": pool_rows}, "steps_per_round": steps, **rates}


def _rates(times: Mapping[str, Times], *, unit: str, amount: float, reference: str) -> dict[str, Any]:
    """Amount per second of each contestant, and its ratio to the reference within each round."""
    return {
        unit: {name: spread([amount / seconds for seconds in found.wall]) for name, found in times.items()},
        f"share_of_{reference}": {
            name: ratios(times[reference].wall, found.wall) for name, found in times.items() if name != reference
        },
    }


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "store_cpu.json", rounds=9)
    parser.add_argument("--rows", type=int, default=131072, help="number of tokens in the store for the reads")
    parser.add_argument("--d-model", type=int, default=512, help="width of that store, per model")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the files (about 1 GB); default: /tmp")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Build the stores in a scratch folder, measure, and write one result file."""
    arguments = options().parse_args(argv)
    began, rounds = begin(arguments)
    quick = arguments.quick
    n_rows, d_model = (4096, 16) if quick else (arguments.rows, arguments.d_model)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        store = build_store(folder / "wide", n_rows, d_model)
        body: dict[str, Any] = {"reads": measure_reads(store, folder, rounds * (1 if quick else _READ_ROUNDS))}
        mapped = {name: np.memmap(folder / f"{name}.bin", np.uint16, "r", shape=(n_rows, d_model)) for name in MODELS}
        n_tokens, size = (1024, 128) if quick else (16384, 2048)
        body["batches"] = measure_batches(store, mapped, rounds, n_tokens=n_tokens, batch_size=size)
        shape, pool = (QUICK_TRAIN, 1024) if quick else (TRAIN, 65536)
        narrow = build_store(folder / "narrow", 4096 if quick else 131072, 16 if quick else 128)
        body["training"] = measure_training(narrow, rounds, shape=shape, pool_rows=pool)
        body["stores"] = {
            "read": [n_rows, len(MODELS), d_model],
            "trained": [narrow.n_rows, len(MODELS), narrow.d_model],
        }
    show(body)
    goals = [
        wanted(f"{label}, share of memmap", body["reads"][label]["share_of_memmap"]["store"]["median"], at_least)
        for label, at_least in GOALS.items()
    ]
    what = "reading the activation store, warm, against the same bytes elsewhere; training from it against memory"
    body = {"seeds": {"all": SEED}, "goals": goals, "results": body}
    write_report(arguments, what=what, began=began, packages=_PACKAGES, body=body)


def show(body: Mapping[str, Any]) -> None:
    """Print one line per measurement."""
    for label, found in body["reads"].items():
        rates = "   ".join(f"{name} {rate['median']:,.0f} MB/s" for name, rate in found["mb_per_s"].items())
        print(f"{label:<16} {rates}   store / memmap {found['share_of_memmap']['store']['median']:.0%}")
    rates = body["batches"]["tokens_per_s"]
    print("shuffled batches " + "   ".join(f"{name} {rate['median']:,.0f} tokens/s" for name, rate in rates.items()))
    training = body["training"]
    rates = "   ".join(f"{name} {rate['median']:,.0f} tokens/s" for name, rate in training["tokens_per_s"].items())
    print(f"training         {rates}   store / memory {training['share_of_memory']['store']['median']:.0%}")


if __name__ == "__main__":
    main()
