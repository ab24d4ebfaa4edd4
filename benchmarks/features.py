"""Speed of the feature table's pass relative to encoding alone, and its peak memory by number of rows.

    python -m benchmarks.features --out artifacts/benchmarks/features_cpu.json

*Encoding alone* computes the joint read-out and each model's own with the public functions, one `Crosscoder.encode` each. The two
take turns on the same rows. The pass computes the same activations with fewer products, and in addition sums, latent scaling,
correlations, top rows and groups of sequences. One joint encode is timed for comparison.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import N_MODELS, Setting
from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.planted_data import SEED, planted_batches
from benchmarks.timing import Clock, ratios, take_turns, wanted
from mechprobe.dictionary.readout import Readout
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.collect import collect
from sae_training import Crosscoder, CrosscoderConfig

SETTINGS = {
    "demo": Setting(d_model=128, d_sae=1024, k=24, batch_size=2048),
    "medium": Setting(d_model=512, d_sae=8192, k=32, batch_size=1024),
}
QUICK = Setting(d_model=16, d_sae=128, k=4, batch_size=128)
NAMES = ("base", "sft", "rl")
NEAR = {"all near": None, "base and rl near": ("base", "rl")}
AT_LEAST = 0.8
"""Share of the speed of encoding alone that is wanted, on a machine without other load."""
_SEQUENCE = 32
_PACKAGES = ("torch", "numpy")
_MEMORY_BATCHES = (8, 64)


class RowsInMemory:
    """The part of a store that the pass reads. ``repeats`` serves the same rows again, so a long store takes no memory."""

    def __init__(self, x: Tensor, repeats: int = 1) -> None:
        self.x, self.models = x, NAMES
        self.n_rows = len(x) * repeats
        self.tokens = SimpleNamespace(sample=np.arange(self.n_rows, dtype=np.int32) // _SEQUENCE)

    def rows(self, start: int, stop: int) -> Tensor:
        """Consecutive rows, which wrap around at the end of the tensor."""
        first = start % len(self.x)
        if first + stop - start <= len(self.x):
            return self.x[first : first + stop - start]
        return torch.cat([self.x[first:], self.x[: (first + stop - start) % len(self.x)]])


def build(setting: Setting, n_batches: int) -> tuple[Crosscoder, Tensor]:
    """A dictionary with random weights whose threshold gives an L0 of ``k`` on these rows, and the rows."""
    shape = CrosscoderConfig(
        n_models=N_MODELS, d_model=setting.d_model, d_sae=setting.d_sae, k=setting.k, model_names=NAMES, seed=SEED
    )
    crosscoder = Crosscoder(shape)
    x = torch.cat(planted_batches(setting, n_batches))
    crosscoder.set_scale([1.0] * N_MODELS)
    with torch.no_grad():
        acts = torch.relu(crosscoder.hidden_pre(x[: setting.batch_size])) * crosscoder.feature_norm()
        kept = setting.k * len(acts)
        crosscoder.threshold.fill_(float(acts.flatten().double().topk(kept).values[-1]))
    return crosscoder, x


def measure(setting: Setting, near: tuple[str, ...] | None, *, rounds: int, n_batches: int) -> dict[str, Any]:
    """Seconds of the pass, of encoding alone and of one joint encode over the same rows."""
    crosscoder, x = build(setting, n_batches)
    store, readout = RowsInMemory(x), Readout("swap", near)
    config = FeaturesConfig(batch_rows=setting.batch_size, near=near, bootstrap_groups=2)

    @torch.no_grad()
    def joint() -> None:
        for batch in x.split(setting.batch_size):
            crosscoder.encode(batch)

    @torch.no_grad()
    def encoding() -> None:
        for batch in x.split(setting.batch_size):
            crosscoder.encode(batch)
            for name in NAMES:
                readout.feature_acts(crosscoder, batch, name)

    def whole() -> None:
        collect(crosscoder, store, config)

    times = take_turns({"pass": whole, "encoding": encoding, "joint": joint}, rounds, Clock())
    collected = collect(crosscoder, store, config)
    share = ratios(times["encoding"].wall, times["pass"].wall)
    return {
        "rows": len(x),
        "l0": float(collected.sums.active[0].sum()) / len(x),
        "rows_per_s": {name: len(x) / statistics.median(found.wall) for name, found in times.items()},
        "seconds": {name: found.summary() for name, found in times.items()},
        "speed_of_encoding": share,
        "speed_of_joint_encode": ratios(times["joint"].wall, times["pass"].wall),
    }


def peak_of(setting: Setting, n_batches: int) -> int:
    """Peak memory in bytes of a fresh process that reads ``n_batches`` batches, of which four are in memory."""
    request = json.dumps({"setting": setting.__dict__, "n_batches": n_batches})
    command = [sys.executable, "-m", "benchmarks.features", "--peak-of", request]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(done.stdout.splitlines()[-1])


def _print_peak(request: dict[str, Any]) -> None:
    setting = Setting(**request["setting"])
    crosscoder, x = build(setting, 4)
    store = RowsInMemory(x, repeats=max(1, request["n_batches"] // 4))
    collect(crosscoder, store, FeaturesConfig(batch_rows=setting.batch_size))
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_shared_options(parser, out=RESULTS / "features_cpu.json", rounds=7)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["demo"])
    parser.add_argument("--batches", type=int, default=4, help="batches of rows in a round")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write one result file."""
    arguments = options().parse_args(argv)
    began, rounds = begin(arguments)
    if arguments.peak_of:
        _print_peak(json.loads(arguments.peak_of))
        return
    chosen = {"quick": QUICK} if arguments.quick else {name: SETTINGS[name] for name in arguments.settings}
    body: dict[str, Any] = {"speed": {}, "memory": {}}
    goals = []
    for label, setting in chosen.items():
        for kind, near in NEAR.items():
            found = measure(setting, near, rounds=rounds, n_batches=arguments.batches)
            body["speed"][f"{label}, {kind}"] = found
            print(
                f"{label}, {kind}: {found['rows_per_s']['pass']:,.0f} rows/s, {found['speed_of_encoding']['median']:.0%} of encoding "
                f"alone, {found['speed_of_joint_encode']['median']:.0%} of one joint encode (L0 {found['l0']:.1f})"
            )
            goals.append(
                wanted(f"{label}, {kind}, share of encoding alone", found["speed_of_encoding"]["median"], AT_LEAST)
            )
        peaks = {n * setting.batch_size: peak_of(setting, n) for n in _MEMORY_BATCHES}
        body["memory"][label] = {"peak_bytes_by_rows": peaks, "ratio": max(peaks.values()) / min(peaks.values())}
        print(f"{label}: peak memory " + ", ".join(f"{b / 1e6:,.0f} MB at {n:,} rows" for n, b in peaks.items()))
    what = "the pass of the feature table against encoding alone, and its memory against the number of rows"
    body = {"seeds": {"all": SEED}, "goals": goals, "results": body}
    write_report(arguments, what=what, began=began, packages=_PACKAGES, body=body)


if __name__ == "__main__":
    main()
