"""Speed and peak memory of log-probabilities, their gradients and divergences in chunks, against whole tensors of logits.

    python -m benchmarks.log_probs --out artifacts/benchmarks/log_probs_cpu.json

The head is that of Qwen3-0.6B at random. The whole contestant does what is written first: all logits, in float64 for the softmax.
Memory is measured in new processes, at one and at four times the positions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.memory import _peak, _reset
from benchmarks.timing import Clock, ratios, take_turns
from mechprobe.models.log_probs import compared_with, token_log_probs


@dataclass(frozen=True)
class Setting:
    """Sizes of the head, and the number of positions."""

    vocab: int = 151_936
    width: int = 1024
    positions: int = 128
    device: str = "cpu"


class Heads:
    """A random head and states, and what is timed."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.linear = nn.Linear(setting.width, setting.vocab, bias=False, device=setting.device).requires_grad_(False)
        self.head: Any = SimpleNamespace(logits=self.linear, n_logits=lambda _width: setting.vocab)
        self.states, self.others = (
            torch.randn(setting.positions, setting.width, device=setting.device) for _ in range(2)
        )
        self.target = torch.randint(setting.vocab, (setting.positions,), device=setting.device)

    def _gradient(self, log_probs: Callable[[Tensor], Tensor]) -> None:
        states = self.states.clone().requires_grad_()
        torch.autograd.grad(log_probs(states).sum(), states)

    def gradient_whole(self) -> None:
        """Gradient of the log-probabilities of the targets."""
        self._gradient(lambda x: self.linear(x).double().log_softmax(-1).gather(1, self.target[:, None]))

    def gradient_chunks(self) -> None:
        """The same in chunks, whose logits are made twice."""
        self._gradient(lambda x: token_log_probs(self.head, x, self.target))

    @torch.no_grad()
    def divergence_whole(self) -> None:
        """KL divergence of both states."""
        p, q = (self.linear(x).double().log_softmax(-1) for x in (self.states, self.others))
        nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)

    def divergence_chunks(self) -> None:
        """The same in chunks."""
        compared_with(self.head, self.states, [self.others], self.target)


def peak_above(setting: Setting) -> float:
    """Peak memory of both kinds of work in chunks, above the weights (GiB)."""
    heads = Heads(setting)
    states, heads.states = heads.states, heads.states[:2]
    others, heads.others = heads.others, heads.others[:2]
    target, heads.target = heads.target, heads.target[:2]
    heads.gradient_chunks()
    heads.divergence_chunks()
    heads.states, heads.others, heads.target = states, others, target
    before = _reset(setting.device)
    heads.gradient_chunks()
    heads.divergence_chunks()
    return (_peak(setting.device) - before) / 2**30


def _peak_in_new_process(setting: Setting) -> float:
    command = [sys.executable, "-m", "benchmarks.log_probs", "--memory", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the memory could not be measured: {done.stderr.strip()[-500:]}")
    return float(done.stdout.splitlines()[-1])


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Seconds of every contestant, and the speed of chunks relative to whole tensors."""
    heads = Heads(setting)
    turns = {
        "gradient_whole": heads.gradient_whole, "gradient_chunks": heads.gradient_chunks,
        "divergence_whole": heads.divergence_whole, "divergence_chunks": heads.divergence_chunks,
    }  # fmt: skip
    times = take_turns(turns, rounds, Clock(setting.device))
    kinds = ("gradient", "divergence")
    speed = {kind: ratios(times[f"{kind}_whole"].cpu, times[f"{kind}_chunks"].cpu) for kind in kinds}
    return {"speed_of_whole": speed, "times": {name: value.summary() for name, value in times.items()}}


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "log_probs_cpu.json", rounds=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        torch.set_num_threads(1)
        print(peak_above(Setting(**json.loads(arguments.memory))))
        return
    began, rounds = begin(arguments)
    setting = Setting(device=arguments.device)
    setting = replace(setting, vocab=20_000, width=32, positions=64) if arguments.quick else setting
    sizes = [setting.positions, 4 * setting.positions]
    memory = {str(n): round(_peak_in_new_process(replace(setting, positions=n)), 3) for n in sizes}
    body = {"sizes": asdict(setting), "peak_gib_by_positions": memory, **measure(setting, rounds)}
    for name, spread in body["speed_of_whole"].items():
        print(
            f"{name}: {spread['median']:.2f} of the speed of whole tensors ({spread['min']:.2f} to {spread['max']:.2f})"
        )
    print("peak memory above the weights: " + ", ".join(f"{value} GiB at {n} positions" for n, value in memory.items()))
    write_report(arguments, what="log_probs", began=began, packages=("torch", "mechprobe"), body=body)


if __name__ == "__main__":
    main()
