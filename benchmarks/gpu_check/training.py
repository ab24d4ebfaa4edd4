"""Step ``training``: 3 x 2560, F = 32,768, k = 50, batch 4,096, bfloat16: our step against the dense one and sae-lens."""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.contestants import N_MODELS, OURS, OURS_DENSE, Setting
from benchmarks.gpu_check.card import sized_rates
from benchmarks.gpu_check.record import Record
from benchmarks.memory import peak_bytes
from benchmarks.planted_data import planted_batches
from benchmarks.step_profile import profile_step
from benchmarks.train import build, measure, show

SPEEDUP, ENCODE_SHARE = 2.2, 0.6
"""Wanted: our step against the dense one, and the encoder's product against the rate of a large square product."""
NAMES = (OURS, OURS_DENSE, "sae_lens")


def setting_of(record: Record) -> Setting:
    """The shape; at tiny sizes the Triton kernels are not in it, because the step chooses what is fastest on a CPU."""
    if record.tiny:
        return Setting(d_model=16, d_sae=128, k=5, batch_size=64, device=record.device, precision="bfloat16")
    return Setting(d_model=2560, d_sae=32768, k=50, batch_size=4096, device=record.device, precision="bfloat16")


def run(record: Record) -> None:
    """Measure the peak memory of each contestant, then all of them in turns, then the parts of our step."""
    setting = setting_of(record)
    rates = sized_rates(record)
    record.put("rates", rates)
    present, absent = build(Setting(16, 64, 4, 8, record.device), NAMES)
    record.put("absent", absent)
    batches = planted_batches(setting, 4)
    memory = {}
    for name in present:
        memory[name] = peak_bytes(name, setting, batches)
        _free(record)
    record.put("memory", memory)
    rounds, steps = (2, 1) if record.tiny else (7, 10)
    result = measure(setting, rounds=rounds, steps=steps, names=NAMES, batches=batches)
    for name, peak in memory.items():
        result["contestants"][name]["memory_bytes"] = peak
    record.put("rounds", rounds)
    record.put("training", result)
    _free(record)
    result["profile"] = profile_step(setting, batches, rounds)
    show("training", result)
    record.put("training", result)
    _goals(record, result, rates, setting)


def _goals(record: Record, result: dict[str, Any], rates: dict[str, float], setting: Setting) -> None:
    profile = result["profile"]
    card = rates["bfloat16_tflops"] * 1e12
    flop = 2 * setting.batch_size * N_MODELS * setting.d_model * setting.d_sae
    share = {
        "product": profile["encode_product_flop_per_s"] / card,
        "part of the step": flop / profile["parts_s"]["encode"] / card,
    }
    record.put("encode_share_of_card", share)
    record.goal("our step against the dense step", result["speedup"][OURS_DENSE]["wall"]["median"], SPEEDUP)
    record.goal("encode product, share of the measured product rate", share["product"], ENCODE_SHARE)


def _free(record: Record) -> None:
    gc.collect()
    if record.device == "cuda":
        torch.cuda.empty_cache()
