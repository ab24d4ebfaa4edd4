"""Training in one process and in two, by latents and by tokens: peak memory of each process, and time of a step.

Each process counts its memory above that of its imports, from the making of the dictionary to its last checkpoint. On one
machine the processes share the cores, so the times show the cost of the exchange, and no gain.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.memory import _peak, _reset

WAYS = ((1, "latents"), (2, "latents"), (2, "tokens"))
SIZE = {"d_model": 128, "d_sae": 65536, "batch_size": 1024, "k": 32}
QUICK = {"d_model": 8, "d_sae": 64, "batch_size": 32, "k": 4}


def measure_here(size: dict[str, int], way: str, n_steps: int, out: Path) -> dict[str, Any]:
    """Train in this process, one of those of the environment; its peak in bytes and its median step in seconds."""
    from mechprobe.ranks import ranks_of_environment
    from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, train
    from sae_training.parallel import Division

    torch.set_num_threads(1)
    n, d = size["batch_size"], size["d_model"]
    batches = [torch.randn(n, 3, d, generator=torch.Generator().manual_seed(number)) for number in range(2)]
    with ranks_of_environment(divides=True) as ranks:
        division = Division(ranks, "tokens" if way == "tokens" else "latents", ranks.tensor_group("cpu"))
        small = CrosscoderConfig(n_models=3, d_model=d, d_sae=64, k=4)
        train(Crosscoder(small), batches, TrainConfig(n_tokens=n, batch_size=n))  # imports what torch imports late
        config = CrosscoderConfig(n_models=3, d_model=d, d_sae=size["d_sae"], k=size["k"])
        settings = TrainConfig(n_tokens=n_steps * n, batch_size=n, checkpoint_every=n_steps, log_every=1)
        before, ends = _reset("cpu"), [time.perf_counter()]
        crosscoder = Crosscoder(config, division.latents(config.d_sae))
        train(
            crosscoder,
            [batches[number % 2] for number in range(n_steps)],
            settings,
            out=out,
            on_log=lambda _: ends.append(time.perf_counter()),
            division=division,
        )
        peak = _peak("cpu")
    return {"bytes": peak - before, "seconds": median(last - first for first, last in pairwise(ends[1:]))}


def measure(size: dict[str, int], count: int, way: str, n_steps: int) -> list[dict[str, Any]]:
    """`measure_here` in ``count`` new processes."""
    with socket.socket() as probe, TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        given = json.dumps([size, way, n_steps, folder])
        together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        probe.close()
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", "--here", given],
                env={**os.environ, **together, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(1)
    return [json.loads(text.splitlines()[-1]) for text in texts]


def main() -> None:
    """Measure all ways, print a line for each, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shared_options(parser, out=RESULTS / "ranks_cpu.json", rounds=6)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        size, way, n_steps, folder = json.loads(arguments.here)
        print(json.dumps(measure_here(size, way, n_steps, Path(folder))))
        return
    began, rounds = begin(arguments)
    size, ways = QUICK if arguments.quick else SIZE, []
    for count, way in WAYS:
        found = measure(size, count, way, max(3, rounds))
        ways.append({"processes": count, "way": way, "each": found})
        peaks = ", ".join(f"{each['bytes'] / 2**20:.0f}" for each in found)
        print(f"{count} by {way:8} peak {peaks} MiB, step {max(each['seconds'] for each in found):.3f} s")
    what = "peak memory and step time of training in several processes"
    write_report(arguments, what=what, began=began, packages=("torch",), body={"size": size, "ways": ways})


if __name__ == "__main__":
    main()
