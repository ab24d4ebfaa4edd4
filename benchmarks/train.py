"""Speed and memory of our training step and those of peer libraries, in one process, in turns on the same batches.

    python -m benchmarks.train --settings demo small medium --out artifacts/benchmarks/train_cpu.json

Every contestant gets the same weights to start from, the same batches in the same order, the same learning rate and the
same clipping. Those that minimize what we minimize (sae-lens) are compared at the same number of steps by their loss; for
all, the explained variance of held-out tokens after the same tokens stands beside the speed. README.md says more.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import CONTESTANTS, N_MODELS, OURS, SQUARED, AbsentError, Contestant, Setting
from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.memory import peak_in_new_process
from benchmarks.planted_data import HELD_OUT_SEED, SEED, planted_batches
from benchmarks.step_profile import profile_step
from benchmarks.timing import Clock, Times, ratios, take_turns

SETTINGS = {
    "demo": Setting(d_model=128, d_sae=1024, k=24, batch_size=2048),
    "small": Setting(d_model=128, d_sae=2048, k=32, batch_size=4096),
    "medium": Setting(d_model=512, d_sae=8192, k=32, batch_size=4096),
    "large": Setting(d_model=1024, d_sae=16384, k=64, batch_size=4096),
}
QUICK = Setting(d_model=16, d_sae=128, k=4, batch_size=128)
_N_BATCHES = 8
_PACKAGES = ("torch", "numpy", "sae-lens", "dictionary-learning")


def measure(
    setting: Setting,
    *,
    rounds: int,
    steps: int,
    train_steps: int = 0,
    names: Sequence[str] = tuple(CONTESTANTS),
    batches: list[Tensor] | None = None,
) -> dict[str, Any]:
    """Time the contestants in turns, then compare what they learned.

    Args:
        setting: Shape, device and precision.
        rounds: Timed rounds; one warm-up round precedes them.
        steps: Steps of every contestant in a round.
        train_steps: Steps in all before the losses are compared; those after the timed rounds are not timed.
        names: Contestants to time.
        batches: Batches that all of them train on; None makes `_N_BATCHES` of them.

    Returns:
        Per contestant seconds, speed, loss and FVE, or ``{"absent": reason}``; and our speed relative to the others.
    """
    contestants, absent = build(setting, names)
    batches = batches or planted_batches(setting, _N_BATCHES)
    turns = {name: _Turn(contestant, batches, steps) for name, contestant in contestants.items()}
    times = take_turns(turns, rounds, Clock(setting.device))
    n_timed = (rounds + 1) * steps
    for turn in turns.values():
        for _ in range(-(-max(0, train_steps - n_timed) // steps)):
            turn()
    held_out = planted_batches(setting, 1, held_out=True)[0]
    results: dict[str, Any] = {name: {"absent": reason} for name, reason in absent.items()}
    for name, contestant in contestants.items():
        results[name] = {
            "tokens_per_s": steps * setting.batch_size / statistics.median(times[name].wall),
            **times[name].summary(),
            "objective": contestant.objective,
            "parameters": contestant.n_parameters,
            "training_loss": turns[name].losses[-1],
            "held_out": quality(held_out, contestant.reconstruct),
        }
    return {
        "setting": {**asdict(setting), "n_models": N_MODELS},
        "steps": turns[OURS].n_steps,
        "contestants": {name: results[name] for name in names},
        "speedup": _speedup(times),
        "loss_difference": _loss_difference(results),
    }


def build(setting: Setting, names: Sequence[str]) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The contestants that can run here, and why the others cannot."""
    contestants, absent = {}, {}
    for name in names:
        try:
            contestants[name] = CONTESTANTS[name](setting)
        except AbsentError as error:
            absent[name] = str(error)
            print(f"absent: {name}: {error}")
    return contestants, absent


class _Turn:
    """A number of steps on the next batches; the loss is read at the end, so that no step waits for it."""

    def __init__(self, contestant: Contestant, batches: list[Tensor], steps: int) -> None:
        self.contestant, self.batches, self.steps = contestant, batches, steps
        self.n_steps = 0
        self.losses: list[float] = []

    def __call__(self) -> None:
        loss: Tensor | float = 0.0
        for _ in range(self.steps):
            loss = self.contestant.step(self.batches[self.n_steps % len(self.batches)])
            self.n_steps += 1
        self.losses.append(float(loss))


@torch.no_grad()
def quality(batch: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Mean squared error per token, and FVE, over all models and per model."""
    x, x_hat = batch.double(), reconstruct(batch).double()
    error = (x - x_hat).square().sum(dim=(0, 2))
    variance = (x - x.mean(dim=0)).square().sum(dim=(0, 2))
    return {
        "mse": float(error.sum() / len(batch)),
        "fve": float(1 - error.sum() / variance.sum()),
        "fve_per_model": (1 - error / variance).tolist(),
    }


def _speedup(times: Mapping[str, Times]) -> dict[str, Any]:
    """Our speed relative to each other contestant: spread of the ratio within a round."""
    ours = times[OURS]
    return {
        name: {"wall": ratios(other.wall, ours.wall), "cpu": ratios(other.cpu, ours.cpu)}
        for name, other in times.items()
        if name != OURS
    }


def _loss_difference(results: Mapping[str, Any]) -> dict[str, float]:
    """Relative difference of the loss after the same steps, for contestants with our objective."""
    ours = results[OURS]["training_loss"]
    return {
        name: result["training_loss"] / ours - 1
        for name, result in results.items()
        if name != OURS and result.get("objective") == SQUARED
    }


def measure_memory(setting: Setting, names: Sequence[str], threads: int) -> dict[str, Any]:
    """Peak bytes of each contestant, each in its own process."""
    found: dict[str, Any] = {}
    for name in names:
        found[name] = peak_in_new_process(name, setting, threads)
        print(f"  {name:<20} peak {found[name]['above'] / 2**20:8,.0f} MiB above data")
    return found


def show(name: str, result: Mapping[str, Any]) -> None:
    """Print one line per contestant."""
    print(f"{name}: {result['setting']}, {result['steps']} steps")
    for contestant, found in result["contestants"].items():
        if "absent" in found:
            print(f"  {contestant:<20} absent: {found['absent']}")
            continue
        ratio = result["speedup"].get(contestant, {}).get("wall", {}).get("median", 1.0)
        print(
            f"  {contestant:<20} {found['tokens_per_s']:10,.0f} tokens/s  ours is {ratio:5.2f} times as fast  "
            f"loss {found['training_loss']:9.3f}  held-out fve {found['held_out']['fve']:.3f}"
        )
    if "profile" in result:
        print(f"  {result['profile']['bound']}")


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "train_cpu.json", rounds=7)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["demo", "small"])
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--train-steps", type=int, default=0, help="steps in all before the losses are compared")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--batch-size", type=int, default=None, help="batch size instead of the setting's")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="a process a contestant")
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, Setting]:
    chosen = {"quick": QUICK} if arguments.quick else {name: SETTINGS[name] for name in arguments.settings}
    changes: dict[str, Any] = {"device": arguments.device, "precision": arguments.precision}
    if arguments.batch_size is not None:
        changes["batch_size"] = arguments.batch_size
    return {name: replace(setting, **changes) for name, setting in chosen.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the settings one after another and write one result file."""
    arguments = options().parse_args(argv)
    if OURS not in arguments.contestants:
        raise SystemExit(f"--contestants must name {OURS}: the others are compared with it.")
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here.")
    began, rounds = begin(arguments)
    results = {}
    for name, setting in _settings(arguments).items():
        # Memory first: a new process starts from a small one.
        memory = measure_memory(setting, _present(arguments.contestants), arguments.threads) if arguments.memory else {}
        result = measure(
            setting,
            rounds=rounds,
            steps=arguments.steps,
            train_steps=arguments.train_steps,
            names=arguments.contestants,
        )
        for contestant, peak in memory.items():
            result["contestants"][contestant]["memory_bytes"] = peak
        result["profile"] = profile_step(setting, planted_batches(setting, 2), rounds)
        show(name, result)
        results[name] = result
    device = {"device": torch.cuda.get_device_name()} if arguments.device.startswith("cuda") else {}
    write_report(
        arguments,
        what="training steps of a three-model BatchTopK crosscoder, contestants taking turns",
        began={**began, **device},
        packages=_PACKAGES,
        body={"seeds": {"planted": SEED, "held_out": HELD_OUT_SEED, "weights": 0}, "results": results},
    )


def _present(names: Sequence[str]) -> list[str]:
    """Contestants that can be built here; each is tried at a tiny size."""
    return list(build(replace(QUICK, batch_size=8), names)[0])


if __name__ == "__main__":
    main()
