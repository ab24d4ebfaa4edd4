"""Peak memory and time of the parts of stages that run models, on a family of your own, at two numbers of tokens.

    python -m benchmarks.stage_memory --models base=M/base sft=M/sft rl=M/rl --dtype bfloat16 --out artifacts/benchmarks/stage_memory_cpu.json

Every part runs in a new process on random tokens, with an untrained dictionary of 8,192 features. The peak is that of the whole
process, imports and models included. ``loss`` is the spliced loss of ``features``, ``relie`` the indirect effects of ``select`` and
``emergence``, ``generate`` the responses of ``evaluate``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from mechprobe.dictionary.splicing import TokenizedSample, spliced_losses
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.one_by_one import OneByOne
from mechprobe.selection.rankings.indirect_effects import indirect_effects
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

_FEATURES, _STEPS, _NEW_TOKENS = 8192, 2, 16


def _samples(family: ModelFamily, n: int, length: int) -> list[TokenizedSample]:
    """Random tokens, of which the second half is a response."""
    ids = np.random.default_rng(0).integers(0, family.n_token_ids, (n, length)).tolist()
    response = tuple(place >= length // 2 for place in range(length))
    return [TokenizedSample(tuple(row), (False, *(True,) * (length - 1)), response) for row in ids]


def _crosscoder(family: ModelFamily) -> Crosscoder:
    config = CrosscoderConfig(
        n_models=len(family), d_model=next(iter(family)).d_model, d_sae=_FEATURES, k=50, model_names=family.names
    )
    found = Crosscoder(config).eval().requires_grad_(False)
    found.set_scale([1.0] * len(family))
    return found


def _loss(family: ModelFamily, samples: list[TokenizedSample], site: Site) -> None:
    spliced_losses(_crosscoder(family), family, site, samples)


def _relie(family: ModelFamily, samples: list[TokenizedSample], site: Site) -> None:
    indirect_effects(_crosscoder(family), OneByOne(family, family.names), site, samples, steps=_STEPS)


def _generate(family: ModelFamily, samples: list[TokenizedSample], _site: Site) -> None:
    prompts = [sample.ids for sample in samples]
    for model in family:
        generate(model, family.tokenizer, prompts, max_new_tokens=_NEW_TOKENS)
        model.release()


PARTS: dict[str, Callable[[ModelFamily, list[TokenizedSample], Site], None]] = {
    "loss": _loss, "relie": _relie, "generate": _generate
}  # fmt: skip


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Run one part in this process."""
    torch.set_num_threads(request["threads"])
    family = ModelFamily.load(request["models"], dtype=request["dtype"])
    samples, site = _samples(family, request["samples"], request["length"]), Site(family.n_layers // 2)
    wall, cpu = time.perf_counter(), time.process_time()
    PARTS[request["part"]](family, samples, site)
    return {
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def _in_new_process(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.stage_memory", "--request", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{request['part']} could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "stage_memory_cpu.json", rounds=1)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--samples", nargs="+", type=int, default=[8, 32], help="sequences of each measurement")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--request", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.request:
        print(json.dumps(measure(json.loads(arguments.request))))
        return
    began, _ = begin(arguments)
    models = {name: str(Path(path).resolve()) for name, path in (pair.split("=", 1) for pair in arguments.models)}
    length = 16 if arguments.quick else arguments.length
    shared = {"models": models, "dtype": arguments.dtype, "length": length, "threads": arguments.threads}
    found: dict[str, dict[str, dict[str, float]]] = {part: {} for part in arguments.parts}
    for part in arguments.parts:
        for n in arguments.samples:
            found[part][str(n)] = row = _in_new_process({**shared, "part": part, "samples": n})
            print(f"{part}, {n} sequences of {length} tokens: {row['peak_gib']:.2f} GiB, {row['cpu_s']:.0f} CPU s")
    body = {"sizes": {**shared, "models": list(models)}, "parts": found}
    write_report(
        arguments, what="stage_memory", began=began, packages=("torch", "transformers", "mechprobe"), body=body
    )


if __name__ == "__main__":
    main()
