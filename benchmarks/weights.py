"""Time and peak memory of the weight statistics of two large checkpoints, in a new process.

``python -m benchmarks.weights --out FOLDER`` writes a pair of bfloat16 checkpoints of about 1 GiB each with the shapes of a model
of width 1,024 (or ``--width``), compares them with ``mechprobe weights``, and prints seconds and peak memory as JSON. The pair is
removed again unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the commands

import torch
from safetensors.torch import save_file

_LAYERS_PER_SHARD = 4


def shapes(width: int, gib: float, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model of grouped-query attention and a gated MLP, with as many blocks as fit into the size."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    block = {
        "self_attn.q_proj": (2 * width, width), "self_attn.k_proj": (width, width), "self_attn.v_proj": (width, width),
        "self_attn.o_proj": (width, 2 * width), "mlp.gate_proj": (3 * width, width), "mlp.up_proj": (3 * width, width),
        "mlp.down_proj": (width, 3 * width), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    size = sum(torch.Size(shape).numel() for shape in block.values())
    layers = max(1, round((gib * 2**30 / 2 - vocab * width) / size))
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return found


def write_pair(folder: Path, width: int, gib: float, vocab: int) -> dict[str, Path]:
    """Write base and a tuned model in shards, block by block."""
    paths = {name: folder / name for name in ("base", "rl")}
    parts = _parts(shapes(width, gib, vocab))
    for name, path in paths.items():
        path.mkdir(parents=True)
        placed: dict[str, str] = {}
        for number, part in enumerate(parts):
            file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
            save_file({key: _drawn(key, shape, tuned=name == "rl") for key, shape in part.items()}, path / file)
            placed |= dict.fromkeys(part, file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
        (path / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))
    return paths


def _parts(wanted: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    parts: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in wanted.items():
        pieces = name.split(".")
        number = 1 + int(pieces[2]) // _LAYERS_PER_SHARD if pieces[1] == "layers" else 0
        parts.setdefault(number, {})[name] = shape
    return [parts[number] for number in sorted(parts)]


def _drawn(name: str, shape: tuple[int, ...], *, tuned: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919 + len(name))
    value = torch.randn(shape, generator=generator).mul_(0.02)
    if tuned:
        value += torch.randn(shape, generator=generator).mul_(0.0005)
    return value.bfloat16()


def measure(models: dict[str, Path], out: Path, threads: int) -> dict[str, float]:
    """Compare the pair in this process; seconds, and peak memory in GiB with and without what the imports need."""
    import mechprobe as mp

    torch.set_num_threads(threads)
    weight_statistics = mp.drift.weight_statistics
    before = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    found = weight_statistics(models, out=out, force=True)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gib": round(_peak(), 3),
        "imports_gib": round(before, 3),
        "parameters": found.n,
        "weights": found.n_weights,
        "estimated": found.n_estimated,
        "threads": threads,
    }


def _peak() -> float:
    """High-water mark of this process in GiB; that of ``getrusage`` would include the parent, which wrote the pair."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


def main() -> None:
    """Write the pair, measure in a new process, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = {name: options.out / name for name in ("base", "rl")}
    if options.measure:
        print(json.dumps(measure(models, options.out / "weights", options.threads)))
        return
    if not all(path.is_dir() for path in models.values()):
        write_pair(options.out, options.width, options.gib, options.vocab)
    sizes = {name: sum(file.stat().st_size for file in path.iterdir()) / 2**30 for name, path in models.items()}
    command = [sys.executable, "-m", "benchmarks.weights", *sys.argv[1:], "--measure"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    print(json.dumps({"gib": {k: round(v, 3) for k, v in sizes.items()}, **json.loads(done.stdout.splitlines()[-1])}))
    if not options.keep:
        for path in models.values():
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
