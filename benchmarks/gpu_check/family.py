"""Step ``family``: three random-weight models of the shape of Qwen3-4B, in bfloat16, built on the card from their config.

Measured are the harvest against a bare forward pass that stops at the same block, generation under edits against plain
generation of the same model, and training in mode ``stream``, from prompts to a finished crosscoder.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config

from benchmarks.gpu_check.record import Record, peak_memory
from benchmarks.harvest import LAB, BareForward, collecting, each, lab_prompts, padded_batches
from benchmarks.intervene import HOST, NAMES, Setting, edited_ways, generated, prompt_batch
from benchmarks.timing import ratios, spread, take_turns
from mechprobe.cache.config import CacheConfig, StoreSubset
from mechprobe.cache.harvest.live import LiveActivations
from mechprobe.cache.stage import cache_activations
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from sae_training import CrosscoderConfig, TrainConfig

HARVEST, SWAP, JOINT = 0.95, 0.8, 0.3
"""Wanted shares: of the bare forward, and of plain generation under the two read-outs."""
SHAPE = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
"""Config of Qwen3-4B."""
TINY_SHAPE = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip
WAYS = ("swap_ablate", "joint_ablate", "joint_transplant")
_SECONDS_OF_STREAM = 45
"""Kept free for the training at the end."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        shape: Config of the models.
        site: Site of harvest and edits, in the middle.
        texts: Prompts of the harvest, each of ``joined`` lab prompts.
        joined: Lab prompts in a text.
        batch_tokens: Tokens of a forward pass.
        d_sae: Features of the trained crosscoder.
        batch_size: Tokens of a training step.
        steps: Training steps.
        generation: Sizes of the generation.
    """

    shape: dict[str, Any]
    site: Site
    texts: int
    joined: int
    batch_tokens: int
    d_sae: int
    batch_size: int
    steps: int
    generation: Setting


FULL = Sizes(
    SHAPE,
    Site(17),
    192,
    24,
    16384,
    16384,
    4096,
    16,
    Setting(Site(17), d_sae=4096, prompts=64, joined=4, new_tokens=256),
)
TINY = Sizes(TINY_SHAPE, Site(1), 24, 2, 256, 64, 64, 4, Setting(Site(1), d_sae=32, prompts=3, joined=1, new_tokens=4))


class BuiltModel(LanguageModel):
    """A model that is drawn on its device instead of read from a folder, which holds its config and its seeds."""

    def _load(self, attention: str = "eager") -> PreTrainedModel:
        seeds = load_file(self.path / "model.safetensors")["seeds"].tolist()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device(self.device):
            torch.manual_seed(seeds[0])
            model: Any = AutoModelForCausalLM.from_config(
                self.config, dtype=self._torch_dtype, attn_implementation=attention
            )
            torch.manual_seed(seeds[1])
            for weight in model.parameters():  # the models of a family differ a little
                weight.data.add_(torch.randn_like(weight), alpha=1e-4 * seeds[1])
        return model.requires_grad_(False).eval()


def built_family(folder: Path, shape: dict[str, Any], device: str) -> ModelFamily:
    """Write config, tokenizer and seeds of three models, whose weights are drawn on first use."""
    tokenizer = AutoTokenizer.from_pretrained(LAB / HOST)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    models = {}
    for number, name in enumerate(NAMES):
        path = folder / name
        Qwen3Config(**shape, **special, architectures=["Qwen3ForCausalLM"]).save_pretrained(path)
        tokenizer.save_pretrained(path)
        save_file({"seeds": torch.tensor([0, number])}, path / "model.safetensors", metadata={"format": "pt"})
        models[name] = BuiltModel(name, path, device=device, dtype="bfloat16")
    return ModelFamily(models)


def run(record: Record) -> None:
    """Build the family, then measure the harvest, the generation and the training."""
    sizes = TINY if record.tiny else FULL
    record.put("shape", sizes.shape)
    with tempfile.TemporaryDirectory() as scratch:
        family = built_family(Path(scratch) / "models", sizes.shape, record.device)
        began = time.monotonic()
        n_parameters = sum(weight.numel() for weight in family[HOST].hf.parameters())
        for model in family:
            _ = model.hf
        peak = peak_memory(record.device)
        record.put("built", {"seconds": time.monotonic() - began, "parameters_each": n_parameters, "peak_bytes": peak})
        harvest(record, family, sizes, Path(scratch))
        generation(record, family, sizes)
        stream(record, family, sizes, Path(scratch))


def harvest(record: Record, family: ModelFamily, sizes: Sizes, scratch: Path) -> None:
    """Tokens per second of one model: a bare forward, our reader, and `collect_shard` with the rows on the host."""
    config = CacheConfig(dtype="bfloat16", batch_tokens=sizes.batch_tokens, models_in_memory="all")
    prompts = lab_prompts(sizes.texts * sizes.joined, sizes.joined)[: sizes.texts]
    model = family[HOST]
    store = cache_activations(family.subset(HOST), prompts, [sizes.site], scratch / "harvest", config)
    batches = padded_batches(store, model, sizes.batch_tokens)
    bare = BareForward(model.hf, sizes.site)
    bare.remove()

    def forward() -> None:
        hooked = BareForward(model.hf, sizes.site)
        try:
            each(hooked, batches)()
        finally:
            hooked.remove()

    ways = {
        "bare": forward,
        "reader_plain": each(lambda ids, mask: residuals_plain(model, ids, mask, [sizes.site])[sizes.site], batches),
        "collect_plain": collecting(model, store, sizes.site, residuals_plain, config),
    }
    peak_memory(record.device)
    times = take_turns(ways, 2 if record.tiny else 5, record.clock)
    found = {
        name: {
            "tokens_per_s": store.n_rows / statistics.median(times[name].wall),
            "share_of_bare": ratios(times["bare"].wall, times[name].wall),
        }
        for name in ways
    }
    sequences = {"rows": store.n_rows, "longest": max(ids.shape[1] for ids, _ in batches), "batches": len(batches)}
    record.put("harvest", {"ways": found, "tokens": sequences, "peak_bytes": peak_memory(record.device)})
    record.goal("harvest, share of the bare forward", found["collect_plain"]["share_of_bare"]["median"], HARVEST)


def generation(record: Record, family: ModelFamily, sizes: Sizes) -> None:
    """New tokens per second under edits of 50 features, as a share of the same model without hooks."""
    setting = sizes.generation
    inputs = prompt_batch(family, setting)
    every = edited_ways(family, inputs, setting)
    ways = {"plain": lambda: generated(family[HOST].hf, inputs, setting), **{name: every[name] for name in WAYS}}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    peaks = {}
    short = edited_ways(family, inputs, Setting(**{**vars(setting), "new_tokens": 2}))
    for name in WAYS:  # a short turn warms up
        short[name]()
    for number in range(1 if record.tiny else 3):
        round_seconds = sum(seconds[-1] for seconds in wall.values() if seconds)
        if number and record.left < _SECONDS_OF_STREAM + 1.2 * round_seconds:
            break
        peak_memory(record.device)
        for name, work in ways.items():
            started = record.clock.now()
            work()
            wall[name].append(record.clock.now() - started)
            peaks[name] = peak_memory(record.device)
        record.put("generation", _generation_result(wall, peaks, setting, int(inputs[0].shape[1])))
    shares = record.results["generation"]["ways"]
    record.goal("generation under swap, share of plain", shares["swap_ablate"]["share_of_plain"]["median"], SWAP)
    for name in ("joint_ablate", "joint_transplant"):
        record.goal(f"generation under {name}, share of plain", shares[name]["share_of_plain"]["median"], JOINT)


def _generation_result(
    wall: dict[str, list[float]], peaks: dict[str, int | None], setting: Setting, prompt_tokens: int
) -> dict[str, Any]:
    n_tokens = setting.prompts * setting.new_tokens
    ways = {
        name: {
            "tokens_per_s": n_tokens / statistics.median(seconds),
            "wall_s": spread(seconds),
            "share_of_plain": ratios(wall["plain"], seconds),
            "peak_bytes": peaks[name],
        }
        for name, seconds in wall.items()
    }
    settings = {**vars(setting), "site": str(setting.site), "prompt_tokens": prompt_tokens}
    return {"setting": settings, "rounds": len(wall["plain"]), "ways": ways}


def stream(record: Record, family: ModelFamily, sizes: Sizes, scratch: Path) -> None:
    """Train a crosscoder while the models run, from prompts to weights and held-out metrics."""
    n_tokens = sizes.steps * sizes.batch_size
    prompts = lab_prompts(sizes.texts * sizes.joined, sizes.joined)[: sizes.texts]
    config = CacheConfig(
        dtype="bfloat16", batch_tokens=sizes.batch_tokens, models_in_memory="all", shard_rows=4 * sizes.batch_size
    )
    peak_memory(record.device)
    began = record.clock.now()
    subset = StoreSubset(rows=sizes.batch_size, scale_rows=sizes.batch_size)
    cache_activations(family, prompts, [sizes.site], scratch / "kept", config, kept=subset)
    kept = record.clock.now()
    live = LiveActivations.open(scratch / "kept", family)
    width = sizes.shape["hidden_size"]
    shape = CrosscoderConfig(n_models=len(NAMES), d_model=width, d_sae=sizes.d_sae, k=8, model_names=NAMES)
    training = TrainConfig(
        n_tokens=n_tokens, batch_size=sizes.batch_size, lr=1e-4, precision="bfloat16", checkpoint_every=0
    )
    pool = 8 * sizes.batch_size
    train_crosscoder(live, shape, training, scratch / "crosscoder", device=record.device, pool_rows=pool)
    ended = record.clock.now()
    metrics = json.loads((scratch / "crosscoder" / "metrics.json").read_text(encoding="utf-8"))
    record.put(
        "stream",
        {
            "tokens": n_tokens, "d_sae": sizes.d_sae, "batch_size": sizes.batch_size, "seconds_kept_rows": kept - began,
            "seconds_training": ended - kept, "tokens_per_s": n_tokens / (ended - kept), "metrics": metrics,
            "peak_bytes": peak_memory(record.device),
        },
    )  # fmt: skip
