"""How well every variant recovers planted features.

    python benchmarks/planted.py --out artifacts/benchmarks/planted.json

The large setting: 256 features that three models share and 50 of one model alone (10, 20, 20) in 3 x 128 dimensions, 320
latents, 1200 steps of 1024 tokens, k near the true number of active features. Further settings change one thing at a
time: features that fire together, noise, two sites in one dictionary, and a dictionary too small for what the models
share, without and with latents designated as shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_training import (
    Crosscoder,
    CrosscoderConfig,
    PlantedConfig,
    PlantedFeatures,
    TrainConfig,
    evaluate,
    recovery,
    train,
)

TRUTH: dict[str, Any] = {"n_models": 3, "d_model": 128, "n_shared": 256, "n_specific": (10, 20, 20), "density": 0.05}
SHAPE: dict[str, Any] = {"n_models": 3, "d_model": 128, "d_sae": 320, "k": 15}
BATCH = 1024
# What all models share needs more latents (two for each dense direction) than there are beside the model-only features.
CROWDED: dict[str, Any] = {"n_shared": 160, "n_dense": 40}


@dataclass(frozen=True)
class Case:
    """One training, with its differences from the large setting."""

    name: str
    shape: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


L1 = {"l1_coefficient": 1.0}
CASES = (
    Case("batchtopk"),
    Case("topk"),
    Case("matryoshka", {"variant": "matryoshka"}),
    Case("matryoshka, one prefix of 288", {"variant": "matryoshka", "prefixes": (288, 320)}),
    Case("jumprelu", {"variant": "jumprelu"}),
    Case("l1", {"variant": "l1"}, {}, L1),
    Case("batchtopk, dedicated", {"n_dedicated": (12, 24, 24)}),
    Case("batchtopk, correlation 0.3", {}, {"correlation": 0.3}),
    Case("batchtopk, correlation 0.6", {}, {"correlation": 0.6}),
    Case("batchtopk, noise 0.05", {}, {"noise": 0.05}),
    Case("batchtopk, noise 0.1", {}, {"noise": 0.1}),
    Case("batchtopk, two sites", {"sites": ("a", "b"), "d_model": 64}, {"n_sites": 2, "d_model": 64}),
    Case("l1, crowded", {"variant": "l1", "d_sae": 224}, CROWDED, L1),
    Case("l1, crowded, shared penalty", {"variant": "l1", "d_sae": 224, "n_shared": 80}, CROWDED, L1),
)


def run(case: Case, *, steps: int, seed: int) -> dict[str, Any]:
    """Train one case, and compare the dictionary with the planted features."""
    variant = {"variant": case.name} if case.name == "topk" else {}
    truth = PlantedFeatures.make(PlantedConfig(**{**TRUTH, **case.truth, "seed": seed}))
    crosscoder = Crosscoder(CrosscoderConfig(**{**SHAPE, **variant, **case.shape, "seed": seed}))
    training = TrainConfig(
        **{"n_tokens": steps * BATCH, "batch_size": BATCH, "lr": 5e-3, "log_every": steps, **case.training}
    )
    started = time.process_time()
    train(crosscoder, truth.batches(BATCH, seed=seed + 1), training)
    seconds = time.process_time() - started
    metrics = evaluate(crosscoder, truth.batches(BATCH, seed=seed + 2, n_batches=20))
    found = recovery(crosscoder, truth, metrics.density)
    specific = truth.owner >= 0
    shared = torch.tensor([kind == "shared" for kind in truth.kinds])
    # A shared feature is called specific where the latent that matches it best is called one model's own.
    wrong = shared & found.said_specific[found.match].any(dim=1) & (found.cosine >= 0.9)
    return {
        "case": case.name,
        "crosscoder": crosscoder.config.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "truth": truth.config.model_dump(mode="json"),
        "fve": metrics.fve_all,
        "l0": metrics.l0,
        "true_l0": truth.config.density * truth.config.n_features,
        "dead": metrics.dead_frac,
        "n_specific": int(specific.sum()),
        "specific_found": int(found.found_specific(truth).sum()),
        "said_specific": found.said_specific.sum(dim=0).tolist(),
        "shared_called_specific": int(wrong.sum()),
        "mean_max_cosine": float(found.cosine.mean()),
        "min_max_cosine": float(found.cosine.min()),
        "cpu_s": round(seconds, 1),
    }


def main() -> None:
    """Run the cases, and write the file after each of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("artifacts/benchmarks/planted.json"))
    parser.add_argument("--cases", nargs="*", help="names of cases; all by default; finished cases stay in the file")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known = {case.name: case for case in CASES}
    if unknown := set(args.cases or ()) - known.keys():
        parser.error(f"no case {sorted(unknown)[0]!r}; the cases are {', '.join(known)}")
    results = {row["case"]: row for row in json.loads(args.out.read_text())["results"]} if args.out.is_file() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.cases or known:
        row = results[name] = run(known[name], steps=args.steps, seed=args.seed)
        shown = ("fve", "l0", "dead", "specific_found", "said_specific", "shared_called_specific", "mean_max_cosine")
        print(name, {key: round(row[key], 4) if isinstance(row[key], float) else row[key] for key in shown}, flush=True)
        ordered = [results[case] for case in known if case in results]
        about = {"steps": args.steps, "seed": args.seed, "torch": torch.__version__, "machine": platform.machine()}
        args.out.write_text(json.dumps({"about": about, "results": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
