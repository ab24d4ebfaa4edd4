"""Speed and peak memory of exact divergences over a large vocabulary, against the bare forward passes with their heads.

    python -m benchmarks.drift --out artifacts/benchmarks/drift_cpu.json

Two random models of the width and vocabulary of Qwen2.5-0.5B read the same tokens. The bare contestant runs both with all logits,
one sequence at a time, and drops the logits. The others are what ``mechprobe drift`` does: the pair, and one more model against the
kept hidden states of base. Fewer layers than the real 24 make the comparison a larger share, so the ratios are on the low side.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.memory import _peak, _reset
from benchmarks.timing import Clock, ratios, take_turns
from mechprobe.drift.divergence.distances import hidden_divergences
from mechprobe.drift.divergence.sums import CellSums, TokenCounts
from mechprobe.models.head import ModelHead

LIMIT_GIB, LEAST_RATIO = 2.0, 0.5


@dataclass(frozen=True)
class Setting:
    """Sizes of the models and of the text."""

    vocab: int = 151_936
    width: int = 896
    layers: int = 6
    sequences: int = 8
    length: int = 512
    device: str = "cpu"

    @property
    def quick(self) -> Setting:
        """Sizes that only show that the script runs."""
        return Setting(vocab=640, width=64, layers=2, sequences=2, length=16, device=self.device)


class Pair:
    """Two models that differ by noise, and one text per sequence."""

    def __init__(self, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM, Qwen2Config

        config = Qwen2Config(
            vocab_size=setting.vocab,
            hidden_size=setting.width,
            intermediate_size=4864 * setting.width // 896,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.width // 64,
            num_key_value_heads=1 if setting.width < 896 else 2,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        models = [AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        with torch.no_grad():
            for parameter in models[1].parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        self.setting, self.models = setting, [model.to(setting.device).requires_grad_(False) for model in models]
        self.ids = torch.randint(setting.vocab, (setting.sequences, setting.length), device=setting.device)
        device = torch.device(setting.device)
        known: list[Any] = [
            SimpleNamespace(name=name, hf=model, input_device=device, n_token_ids=setting.vocab)
            for name, model in zip(("base", "tuned"), self.models, strict=True)
        ]
        self.heads = [ModelHead(model) for model in known]
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def bare(self, n_models: int = 2) -> None:
        """All logits of the last ``n_models`` models."""
        for model in self.models[-n_models:]:
            for row in self.ids:
                model(input_ids=row[None], use_cache=False).logits  # noqa: B018 - the forward pass is what is timed

    def pair(self) -> None:
        """Base, then the tuned model against it."""
        self.kept = [self._hidden(0, row) for row in self.ids]
        self.added()

    def added(self) -> None:
        """The tuned model against kept hidden states of base."""
        for row, base_hidden in zip(self.ids, self.kept, strict=True):
            hidden, target = self._hidden(1, row), row.roll(-1)
            found = hidden_divergences(
                self.heads[1], self.heads[0], hidden, base_hidden, target, n_ids=self.setting.vocab
            )
            zeros = np.zeros(len(row), dtype=np.int64)
            CellSums.of(found, zeros, zeros, zeros)
            TokenCounts.of(found, target.cpu().numpy())

    def _hidden(self, model: int, row: Tensor) -> Tensor:
        return self.heads[model].hidden(row[None], torch.ones_like(row[None]))[0][0]


def peak_above(setting: Setting) -> dict[str, float]:
    """Peak memory of the pair above that of the loaded models, everything included (GiB)."""
    pair = Pair(setting)
    whole, pair.ids = pair.ids, pair.ids[:1, :16]
    pair.pair()
    pair.ids = whole
    gc.collect()
    before = _reset(setting.device)
    pair.pair()
    above = (_peak(setting.device) - before) / 2**30
    logits = setting.vocab * setting.sequences * setting.length * 4 / 2**30
    return {"above_models_gib": round(above, 3), "logits_of_one_model_gib": round(logits, 3), "limit_gib": LIMIT_GIB}


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Seconds of every contestant, and speeds relative to the bare forward passes."""
    pair = Pair(setting)
    pair.pair()
    turns = {"bare_pair": pair.bare, "pair": pair.pair, "bare_one": lambda: pair.bare(1), "added": pair.added}
    times = take_turns(turns, rounds, Clock(setting.device))
    speed = {
        "pair": ratios(times["bare_pair"].wall, times["pair"].wall),
        "added_model": ratios(times["bare_one"].wall, times["added"].wall),
        "pair_cpu": ratios(times["bare_pair"].cpu, times["pair"].cpu),
        "added_model_cpu": ratios(times["bare_one"].cpu, times["added"].cpu),
    }
    return {"speed_of_bare": speed, "least_ratio": LEAST_RATIO, "times": {k: v.summary() for k, v in times.items()}}


def _peak_in_new_process(setting: Setting, threads: int) -> dict[str, float]:
    request = json.dumps({"setting": asdict(setting), "threads": threads})
    command = [sys.executable, "-m", "benchmarks.drift", "--memory", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"the memory could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "drift_cpu.json", rounds=3)
    parser.add_argument("--layers", type=int, default=Setting.layers, help="blocks of each model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        request: dict[str, Any] = json.loads(arguments.memory)
        torch.set_num_threads(request["threads"])
        print(json.dumps(peak_above(Setting(**request["setting"]))))
        return
    began, rounds = begin(arguments)
    setting = Setting(layers=arguments.layers, device=arguments.device)
    setting = setting.quick if arguments.quick else setting
    memory = _peak_in_new_process(setting, arguments.threads)
    body = {"sizes": asdict(setting), "memory": memory, **measure(setting, rounds)}
    for name, spread in body["speed_of_bare"].items():
        print(f"{name}: {spread['median']:.2f} of the bare speed ({spread['min']:.2f} to {spread['max']:.2f})")
    print(f"peak memory above the models: {memory['above_models_gib']:.2f} GiB")
    write_report(arguments, what="drift", began=began, packages=("torch", "transformers", "mechprobe"), body=body)


if __name__ == "__main__":
    main()
