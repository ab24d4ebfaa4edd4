"""Training speed against sae-lens' BatchTopK trainer, interleaved in one process on the same data and start.

    python benchmarks/train.py --out artifacts/benchmarks/train_cpu.json

Both train a dictionary over three models' stacked activations with the same initial weights, batches, learning rate and
clipping; the loss after the same number of steps stands beside the speed. sae-lens chooses features by the norm of the
stacked decoder, we by the sum of the models' norms; the losses differ by that and by rounding alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_training import Crosscoder, CrosscoderConfig, PlantedConfig, PlantedFeatures, TrainConfig, Trainer

N_MODELS = 3
LR = 1e-3
SETTINGS = {
    "demo": {"d_model": 128, "d_sae": 1024, "k": 24, "batch_size": 2048},
    "small": {"d_model": 128, "d_sae": 2048, "k": 32, "batch_size": 4096},
    "medium": {"d_model": 512, "d_sae": 8192, "k": 32, "batch_size": 4096},
    "large": {"d_model": 1024, "d_sae": 16384, "k": 64, "batch_size": 4096},
}

Step = Callable[[Tensor], float]


def make_batches(d_model: int, k: int, batch_size: int, n_batches: int) -> list[Tensor]:
    """Planted activations with as many active features per token as the dictionary may use, already scaled."""
    n_features = 4 * d_model
    truth = PlantedFeatures.make(
        PlantedConfig(
            n_models=N_MODELS,
            d_model=d_model,
            n_shared=n_features - 3 * (n_features // 8),
            n_specific=n_features // 8,
            density=min(0.5, k / n_features),
            noise=0.02,
        )
    )
    batches = list(truth.batches(batch_size, n_batches=n_batches))
    scale = batches[0].norm(dim=2).mean(dim=0) / d_model**0.5
    return [batch / scale[:, None] for batch in batches]


def ours(setting: dict[str, int], kernel: str) -> tuple[Step, Crosscoder]:
    """One step of our trainer."""
    config = CrosscoderConfig(
        n_models=N_MODELS, d_model=setting["d_model"], d_sae=setting["d_sae"], k=setting["k"], decoder_init_norm=0.1
    )
    crosscoder = Crosscoder(config)
    crosscoder.set_scale([1.0] * N_MODELS)
    training = TrainConfig(
        n_tokens=10**9, batch_size=setting["batch_size"], lr=LR, lr_warmup_frac=0.0, lr_decay_frac=0.0, kernel=kernel
    )
    trainer = Trainer(crosscoder, training)

    def step(batch: Tensor) -> float:
        return float(trainer.step(batch).mse)

    return step, crosscoder


def sae_lens(setting: dict[str, int], start: Crosscoder) -> Step:
    """One step of sae-lens' SAETrainer on the flattened models, from the same weights."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = BatchTopKTrainingSAEConfig(
        d_in=start.config.d_all, d_sae=setting["d_sae"], k=setting["k"], apply_b_dec_to_input=False
    )
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(start.encoder.T)
        sae.W_dec.copy_(start.decoder)
        sae.b_enc.copy_(start.b_enc)
        sae.b_dec.copy_(start.b_dec_flat)
    batch_size = setting["batch_size"]
    trainer_config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=batch_size, lr=LR, lr_end=LR
    )
    trainer: Any = SAETrainer(trainer_config, sae, iter([]))

    def step(batch: Tensor) -> float:
        output = trainer.step(batch.flatten(1))
        trainer.n_training_steps += 1
        trainer.maybe_reset_sparsity()
        return float(output.losses["mse_loss"].detach())

    return step


def measure(setting: dict[str, int], rounds: int, steps: int) -> dict[str, Any]:
    """Interleave the contestants: each round times some steps of every one."""
    batches = make_batches(setting["d_model"], setting["k"], setting["batch_size"], n_batches=8)
    sparse, start = ours(setting, "sparse")
    contestants: dict[str, Step] = {"sae_lens": sae_lens(setting, start), "sae_training": sparse}
    contestants["sae_training_dense"] = ours(setting, "dense")[0]
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):  # the first round warms up
        for name, step in contestants.items():
            cpu_start, start_time = time.process_time(), time.perf_counter()
            for offset in range(steps):
                loss = step(batches[(number * steps + offset) % len(batches)])
            if number:
                wall[name].append(time.perf_counter() - start_time)
                cpu[name].append(time.process_time() - cpu_start)
                losses[name].append(loss)
    tokens = steps * setting["batch_size"]
    result: dict[str, Any] = {"setting": {**setting, "n_models": N_MODELS}, "steps": (rounds + 1) * steps}
    floor = encode_seconds(setting)
    for name in contestants:
        result[name] = {
            "tokens_per_s": round(tokens / statistics.median(wall[name])),
            "tokens_per_cpu_s": round(tokens / statistics.median(cpu[name])),
            "seconds_min_median_max": [min(wall[name]), statistics.median(wall[name]), max(wall[name])],
            "final_loss": losses[name][-1],
        }
        ratios = [theirs / mine for theirs, mine in zip(cpu["sae_lens"], cpu[name], strict=True)]
        result[name]["speedup_over_sae_lens"] = statistics.median(ratios)
        result[name]["encode_product_share"] = floor * steps / statistics.median(cpu[name])
    return result


def encode_seconds(setting: dict[str, int], repeats: int = 5) -> float:
    """CPU seconds of the encoder's matrix product alone: the floor of any step that encodes every feature."""
    d_all = N_MODELS * setting["d_model"]
    x, weight = torch.randn(setting["batch_size"], d_all), torch.randn(setting["d_sae"], d_all)
    out = torch.empty(setting["batch_size"], setting["d_sae"])
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        torch.mm(x, weight.T, out=out)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Run the settings and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("artifacts/benchmarks/train_cpu.json"))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["demo", "small"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for name in arguments.settings:
        results[name] = measure(SETTINGS[name], arguments.rounds, arguments.steps)
        print(json.dumps({name: results[name]}, indent=1))
    from importlib.metadata import version

    report = {
        "what": "training steps, three models, BatchTopK; speedup = median over rounds of the ratio of CPU seconds; "
        "encode_product_share = the encoder's matrix product as a share of the step",
        "note": arguments.note,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("torch", "sae-lens", "numpy")},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
