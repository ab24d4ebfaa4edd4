"""Speed of training in mode ``stream``, against harvesting alone and training alone: it should be that of the slower one.

    python -m benchmarks.stream --out artifacts/benchmarks/stream_cpu.json

The models of the embedded lab run on its prompts while a crosscoder trains on their rows. A round of *harvest* computes every
window and trains nothing; a round of *train* takes as many steps on the same batches in memory; a round of *stream* does both.
The first window has nothing to overlap with, so the time of a round starts with the first batch. The bound is what is left to
do then if both ran without a wait: the longer of all training, and all but the first window of harvesting and one of training.
Both need a core of their own, so no other work may run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.random_store import SEED
from benchmarks.store import Training, repeated
from benchmarks.timing import ratios, spread, wanted
from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.live import LiveActivations
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.batches import ServingSession
from mechprobe.data.sources import as_prompts
from mechprobe.lab.summary import shipped
from mechprobe.models.family import ModelFamily

_PACKAGES = ("torch", "transformers")
_AT_LEAST = 0.9


def open_live(folder: Path, n_prompts: int, shard_rows: int) -> LiveActivations:
    """The lab's models, ready to run on prompts; leading shards are in the folder."""
    lab = shipped()
    family = ModelFamily.load({name: lab / name for name in ("base", "sft", "rl")})
    config = CacheConfig(sites=("resid_post.1",), shard_rows=shard_rows, held_out_frac=0.05)
    prompts = as_prompts(lab / "prompts.jsonl")[:n_prompts]
    cache_activations(
        family, prompts, out=folder, config=config, kept=StoreSubset(rows=shard_rows, scale_rows=shard_rows)
    )
    return LiveActivations.open(folder, family)


def measure(live: LiveActivations, shape: dict[str, int], *, pool_rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of the three ways, in turns, for one epoch each, and their tokens per second."""
    options = {"split": "all", "pool_rows": pool_rows, "epochs": 1}
    held = [batch.clone() for batch in live.batches(shape["batch_size"], SEED, **options)]
    seconds: dict[str, list[float]] = {"harvest": [], "train": [], "stream": [], "bound": []}
    for number in range(rounds + 1):  # the first one warms up
        found = {
            "harvest": _harvest(live),
            "train": _train(live, repeated(held), shape, len(held)),
            "stream": _train(live, live.batches(shape["batch_size"], SEED, **options), shape, len(held)),
        }
        first = min(pool_rows / live.n_rows, 1.0)
        found["bound"] = max(found["train"], (1 - first) * found["harvest"] + first * found["train"])
        for name, value in found.items() if number else ():
            seconds[name].append(value)
    return {
        "shape": {**shape, "d_model": live.d_model, "pool_rows": pool_rows},
        "rows": live.n_rows,
        "tokens_per_s": {name: spread([live.n_rows / value for value in values]) for name, values in seconds.items()},
        "share_of_bound": ratios(seconds["bound"], seconds["stream"]),
        "share_of_one_after_the_other": ratios(
            [one + other for one, other in zip(seconds["harvest"], seconds["train"], strict=True)], seconds["stream"]
        ),
    }


def _harvest(live: LiveActivations) -> float:
    session = ServingSession(live.resolve_site(None), lambda _block: None, 0)
    began = time.perf_counter()
    for shard in live.stream.shards:
        for model in live.models:
            live.make_shard(session, model, shard.index)
    return time.perf_counter() - began


def _train(live: LiveActivations, batches: Any, shape: dict[str, int], steps: int) -> float:
    """Seconds of all steps after the first batch has come."""
    training = Training(batches, live.d_model, shape, 1)
    training()
    began = time.perf_counter()
    training.steps = steps - 2  # a stream reads one batch ahead, so the last one may be short
    training()
    return (time.perf_counter() - began) * steps / (steps - 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "stream_cpu.json", rounds=5)
    parser.add_argument("--features", type=int, nargs="+", default=[256, 1024, 4096], help="sizes of the crosscoder")
    parser.add_argument("--prompts", type=int, default=3000, help="prompts of the lab")
    arguments = parser.parse_args(argv)
    began, rounds = begin(arguments)
    n_prompts, sizes, pool = (60, [64], 500) if arguments.quick else (arguments.prompts, arguments.features, 4096)
    body: dict[str, Any] = {}
    goals = []
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        live = open_live(Path(scratch) / "cache", n_prompts, pool // 4)
        for d_sae in sizes:
            shape = {"d_sae": d_sae, "k": min(32, d_sae // 8), "batch_size": 64 if arguments.quick else 1024}
            body[f"F = {d_sae:,}"] = found = measure(live, shape, pool_rows=pool, rounds=rounds)
            rates = "   ".join(f"{name} {rate['median']:,.0f} tokens/s" for name, rate in found["tokens_per_s"].items())
            print(f"F = {d_sae:<6,} {rates}")
            goals.append(
                wanted(f"stream, F = {d_sae:,}, share of the slower one", found["share_of_bound"]["median"], _AT_LEAST)
            )
        live.close()
    what = "training while the models run, against the slower of harvesting and training"
    body = {"seeds": {"all": SEED}, "goals": goals, "results": body}
    write_report(arguments, what=what, began=began, packages=_PACKAGES, body=body)


if __name__ == "__main__":
    main()
