"""Sparse training steps on a GPU: each kernel against the rates of the card, and whole steps against dense ones.

    python benchmarks/kernels.py                     # the sizes of docs/kernels.md; writes one JSON
    python benchmarks/kernels.py --d-model 512 --d-sae 8192 --k 16 32 64

Times are medians of CUDA events over the rounds; the cache is overwritten between the rounds of a kernel. The bytes that a
kernel moves are counted without a cache: gathered rows, other inputs, and outputs. A rate above the card's copy rate means
that the cache served a part.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_training import Crosscoder, CrosscoderConfig, TrainConfig
from sae_training.kernels.backend import Kernel, break_even_density, triton_missing
from sae_training.selection import Selector
from sae_training.trainer import Trainer
from sae_training.variants import VARIANTS

N_MODELS = 3
SQUARE = 8192
COPY_BYTES = 1 << 30
CACHE_BYTES = 1 << 28
STEPS_PER_ROUND = 5


def milliseconds(work: Callable[[], Any], rounds: int, *, cold: bool = True) -> float:
    """Median time of one call, after three warm-up calls."""
    flush = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda") if cold else None
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        if flush is not None:
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def card(device: torch.device, rounds: int) -> dict[str, float]:
    """Rates of the card: TFLOP/s of a large product, and GB/s of a copy."""
    rates = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        one, other = (torch.randn(SQUARE, SQUARE, device=device, dtype=dtype) for _ in range(2))
        seconds = milliseconds(lambda one=one, other=other: one @ other, rounds, cold=False) / 1000
        rates[f"{name}_tflops"] = 2 * SQUARE**3 / seconds / 1e12
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = milliseconds(lambda: target.copy_(source), rounds, cold=False) / 1000
    return {**rates, "copy_gb_per_s": 2 * COPY_BYTES / seconds / 1e9}


def encode(batch_size: int, d_all: int, d_sae: int, device: torch.device, rounds: int) -> float:
    """TFLOP/s of the encoder's product in bfloat16, with scores in bfloat16."""
    x = torch.randn(batch_size, d_all, device=device, dtype=torch.bfloat16)
    weight = torch.randn(d_sae, d_all, device=device, dtype=torch.bfloat16)
    out = torch.empty(batch_size, d_sae, device=device, dtype=torch.bfloat16)
    seconds = milliseconds(lambda: torch.mm(x, weight.T, out=out), rounds, cold=False) / 1000
    return 2 * batch_size * d_all * d_sae / seconds / 1e12


def products(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of each kernel and of the dense work that it replaces, and GB/s as defined at the top."""
    batch_size, d_all, d_sae, k = shape
    scores = torch.randn(batch_size, d_sae, device=device)
    norm = torch.ones(d_sae, device=device)
    weight = torch.randn(d_sae, d_all, device=device, dtype=dtype)
    upstream = torch.randn(batch_size, d_all, device=device, dtype=dtype)
    sparse, dense = (Selector(VARIANTS["batchtopk"], k, "triton") for _ in range(2))
    active, _ = sparse.select(scores, norm, sparse=True)
    whole, _ = dense.select(scores, norm, sparse=False)
    acts = whole.values.to(dtype)
    n_entries, item = batch_size * k, weight.element_size()
    gathered = n_entries * d_all * item
    rows, matrix = batch_size * d_all * item, d_sae * d_all * 4

    def fresh_order() -> None:
        # The order by feature is kept with the entries; a step makes it once.
        torch.sort(active.entries.columns, stable=True)  # pyright: ignore[reportAttributeAccessIssue]

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None, float]] = {
        "select": (
            lambda: sparse.select(scores, norm, sparse=True),
            lambda: dense.select(scores, norm, sparse=False),
            5 * scores.numel() * 4,  # four digits of the cut, then the entries
        ),
        "order": (fresh_order, None, n_entries * 12),
        "decode": (lambda: active.decode(weight), lambda: acts @ weight, gathered + rows),
        "values_gradient": (
            lambda: active.values_gradient(upstream, weight),
            lambda: upstream @ weight.T,
            gathered + rows,
        ),
        "weight_gradient": (
            lambda: active.weight_gradient(active.values, upstream),
            lambda: acts.T @ upstream,
            gathered + matrix,
        ),
        "column_sum": (lambda: active.column_sum(active.values), None, n_entries * 8),
    }
    found = {}
    for name, (work, reference, n_bytes) in cases.items():
        taken = milliseconds(work, rounds)
        found[name] = {"ms": taken, "gb_per_s": n_bytes / taken / 1e6}
        if reference is not None:
            found[name]["dense_ms"] = milliseconds(reference, rounds)
    return found


def make_trainer(shape: tuple[int, int, int, int], kernel: Kernel, precision: dict[str, Any], x: Tensor) -> Trainer:
    """Create a trainer that has not made a step."""
    batch_size, d_all, d_sae, k = shape
    crosscoder = Crosscoder(
        CrosscoderConfig(n_models=N_MODELS, d_model=d_all // N_MODELS, d_sae=d_sae, k=k, decoder_init_norm=0.1)
    ).to(x.device)
    crosscoder.set_scale([1.0] * N_MODELS)
    config = TrainConfig(
        n_tokens=10**9, batch_size=batch_size, lr=1e-4, lr_warmup_frac=0.0, lr_decay_frac=0.0, aux_coefficient=0.0,
        kernel=kernel, **precision,
    )  # fmt: skip
    trainer = Trainer(crosscoder, config)
    trainer.set_up([x])
    return trainer


def steps(
    shape: tuple[int, int, int, int], precision: dict[str, Any], device: torch.device, rounds: int
) -> dict[str, float]:
    """Time whole training steps with Adam and without dead features, sparse and dense in turns."""
    batch_size, d_all = shape[:2]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, N_MODELS, d_all // N_MODELS, generator=generator).to(device)
    trainers = {
        "sparse": make_trainer(shape, "sparse", precision, x),
        "dense": make_trainer(shape, "dense", precision, x),
    }
    first = {kernel: float(trainer.step(x).loss) for kernel, trainer in trainers.items()}
    times: dict[str, list[float]] = {kernel: [] for kernel in trainers}

    def several(trainer: Trainer) -> None:
        for _ in range(STEPS_PER_ROUND):
            trainer.step(x)

    for _ in range(rounds):
        for kernel, trainer in trainers.items():
            times[kernel].append(
                milliseconds(lambda trainer=trainer: several(trainer), 1, cold=False) / STEPS_PER_ROUND
            )
    sparse, dense = (statistics.median(times[kernel]) for kernel in ("sparse", "dense"))
    return {
        "sparse_ms": sparse,
        "dense_ms": dense,
        "speedup": dense / sparse,
        "sparse_tokens_per_s": batch_size / sparse * 1000,
        "first_loss_sparse": first["sparse"],
        "first_loss_dense": first["dense"],
    }


def report(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Run all measurements."""
    d_all, d_sae, rounds = N_MODELS * arguments.d_model, arguments.d_sae, arguments.rounds
    rates = card(device, rounds)
    print(json.dumps(rates, indent=1))
    # Steps are timed in float32, and with bfloat16 products if the trainer supports them.
    precisions: list[dict[str, Any]] = [{}]
    if "precision" in TrainConfig.model_fields:
        precisions = [{"precision": name} for name in ("float32", "bfloat16")]
    results = []
    for batch_size in arguments.batch_sizes:
        tflops = encode(batch_size, d_all, d_sae, device, rounds)
        for k in arguments.k:
            shape = (batch_size, d_all, d_sae, k)
            result: dict[str, Any] = {
                "batch_size": batch_size, "d_all": d_all, "d_sae": d_sae, "k": k, "density": k / d_sae,
                "encode_tflops": tflops, "encode_share_of_card": tflops / rates["bfloat16_tflops"],
            }  # fmt: skip
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
                result[f"kernels_{name}"] = products(shape, dtype, device, rounds)
            for precision in precisions:
                result[f"step_{precision.get('precision', 'float32')}"] = steps(shape, precision, device, rounds)
                gc.collect()
                torch.cuda.empty_cache()
            results.append(result)
            print(json.dumps(result, indent=1))
    bandwidth = rates["copy_gb_per_s"] * 1e9
    return {
        "what": "sparse training on a GPU: medians of CUDA-event times; GB/s count every gathered row once per entry",
        "card": rates,
        "break_even_density": {
            "bfloat16": break_even_density(bandwidth, rates["bfloat16_tflops"] * 1e12, 2),
            "float32": break_even_density(bandwidth, rates["float32_tflops"] * 1e12, 4),
            "bfloat16 products, float32 gathers": break_even_density(bandwidth, rates["bfloat16_tflops"] * 1e12, 4),
        },
        "rounds": rounds,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "device": torch.cuda.get_device_name(device),
        "versions": {name: version(name) for name in ("torch", "triton")},
        "results": results,
    }


def main() -> int:
    """Measure, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="default: artifacts/benchmarks/kernels_<device>.json")
    parser.add_argument("--d-model", type=int, default=2560, help="width of each of three models")
    parser.add_argument("--d-sae", type=int, default=32768)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 50, 64, 100, 200, 400])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a GPU: torch finds no CUDA device here.", file=sys.stderr)
        return 2
    missing = triton_missing("cuda")
    if missing is not None:
        print(f"benchmarks/kernels.py needs Triton: {missing}.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    found = report(arguments, device)
    name = re.sub(r"[^a-z0-9]+", "_", found["device"].lower()).strip("_")
    out = arguments.out or Path("artifacts/benchmarks") / f"kernels_{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
