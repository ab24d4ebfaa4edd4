"""Speed of the harvest relative to a bare transformers forward pass, for the lab's model and an 8-layer Llama of width 512.

    python -m benchmarks.harvest --out artifacts/benchmarks/harvest_cpu.json

The reference is a transformers model with a forward hook that stops it at the same block. It runs on the same padded
batches, prepared in advance, with the same (eager) attention, and its results are discarded. sdpa attention is shown for
comparison; its bits differ. Measured against the reference: the two readers alone (plain hooks, and TransformerBridge with
stop_at_layer); `collect_shard` with each reader (padding, forward pass, selection of the kept positions, conversion to the
stored dtype); and a whole `cache_activations` (tokens, fingerprints, loading, and writing, syncing and hashing of shards).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.timing import Clock, ratios, spread, take_turns
from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.forward_batches import ResidualsFunction, collect_shard, forward_batches, padded
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.prompts import Prompt
from mechprobe.data.sources import as_prompts
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_bridge, residuals_plain
from mechprobe.types import Site

LAB = Path(__file__).parents[1] / "artifacts" / "lab" / "shared-marker"
SEED = 0
_PIPELINE_ROUNDS = 5
BARE = "bare_eager"
READERS = {"plain": residuals_plain, "bridge": residuals_bridge}
_PACKAGES = ("torch", "transformers", "transformer-lens", "h5py")

Batch = tuple[Tensor, Tensor]


class _StopError(Exception):
    """Raised by the hook to end a forward pass."""


class BareForward:
    """A transformers model that stops after one block: the minimum cost of any harvest."""

    def __init__(self, model: Any, site: Site) -> None:
        self.model = model
        self.resid: Tensor | None = None
        self._handle = model.model.layers[site.layer].register_forward_hook(self._stop)

    @classmethod
    def load(cls, folder: Path, site: Site, attention: str, device: str) -> BareForward:
        """A model of its own, as transformers loads it."""
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
        return cls(model.eval().to(device), site)

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def _stop(self, _module: object, _inputs: object, output: Any) -> None:
        self.resid = output if isinstance(output, Tensor) else output[0]
        raise _StopError

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The residual after the block, ``[batch pos d_model]``."""
        with suppress(_StopError):
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        assert self.resid is not None, "the block never ran"
        return self.resid


def measure(
    folder: Path, prompts: Sequence[Prompt], site: Site, scratch: Path, *, rounds: int, device: str = "cpu"
) -> dict[str, Any]:
    """Tokens per second of every way to compute the residuals at ``site``, relative to the bare forward pass.

    The ways are measured in turns.

    Returns:
        Per way the spread of tokens per second and of the ratio; ``bits_equal_bare_eager``: whether each reader gives the
        bits of the bare forward pass (eager) on every kept token.
    """
    family = ModelFamily.load({"base": folder}, device=device)
    model = family["base"]
    store = cache_activations(family, prompts, [site], scratch / "first")
    batches = padded_batches(store, model, CacheConfig().batch_tokens)
    bare = {name: BareForward.load(folder, site, name, device) for name in ("eager", "sdpa")}
    ways: dict[str, Callable[[], object]] = {f"bare_{name}": each(forward, batches) for name, forward in bare.items()}
    equal = {}
    for name, residuals in READERS.items():
        ways[f"reader_{name}"] = each(
            lambda ids, mask, residuals=residuals: residuals(model, ids, mask, [site])[site], batches
        )
        equal[name] = all(_same_bits(residuals(model, *batch, [site])[site], bare["eager"], batch) for batch in batches)
    for name, residuals in READERS.items():
        ways[f"collect_{name}"] = collecting(model, store, site, residuals)
    clock = Clock(device)
    times = take_turns(ways, rounds, clock)
    n_rows = store.n_rows
    n_padded = sum(ids.numel() for ids, _ in batches)
    results: dict[str, Any] = {}
    for name in ways:
        results[name] = {
            **times[name].summary(),
            "tokens_per_s": n_rows / statistics.median(times[name].wall),
            "share_of_bare": ratios(times[BARE].wall, times[name].wall),
        }
    return {
        "model": {"layers": model.n_layers, "d_model": model.d_model, "site": str(site), "dtype": model.dtype},
        "tokens": {"kept": n_rows, "padded": n_padded, "batches": len(batches), "shards": len(store.stream.shards)},
        "bits_equal_bare_eager": equal,
        "ways": results,
        "pipeline": _pipeline(folder, prompts, site, scratch, min(rounds, _PIPELINE_ROUNDS), device),
    }


def padded_batches(store: ActivationStore, model: LanguageModel, batch_tokens: int) -> list[Batch]:
    """The batches of the harvest of this store, on the device of the model."""
    found = []
    for shard in store.stream.shards:
        ids = [store.sequence(index).ids for index in shard.sequences]
        for batch in forward_batches([len(row) for row in ids], batch_tokens):
            tokens, mask = padded([ids[index] for index in batch], int(str(model.tokenizer.pad_token_id)))
            found.append((tokens.to(model.device), mask.to(model.device)))
    return found


def each(residuals: Callable[[Tensor, Tensor], Tensor], batches: Sequence[Batch]) -> Callable[[], None]:
    """A function that runs every batch."""

    def run() -> None:
        for ids, mask in batches:
            residuals(ids, mask)

    return run


def _same_bits(found: Tensor, bare: BareForward, batch: Batch) -> bool:
    kept = batch[1].bool()
    return torch.equal(found[kept], bare(*batch)[kept])


def collecting(
    model: LanguageModel,
    store: ActivationStore,
    site: Site,
    residuals: ResidualsFunction,
    config: CacheConfig | None = None,
) -> Callable[[], None]:
    """`collect_shard` over all shards."""

    def run() -> None:
        for shard in store.stream.shards:
            collect_shard(model, store.stream, shard, [site], config or CacheConfig(), residuals)

    return run


def _pipeline(
    folder: Path, prompts: Sequence[Prompt], site: Site, scratch: Path, rounds: int, device: str
) -> dict[str, Any]:
    """Seconds and tokens per second of a whole `cache_activations` with default settings into a new folder."""
    n_rows = 0

    def run(number: int) -> None:
        nonlocal n_rows
        n_rows = cache_activations(
            ModelFamily.load({"base": folder}, device=device), prompts, [site], scratch / f"whole_{number}"
        ).n_rows

    numbers = iter(range(rounds + 1))
    times = take_turns({"pipeline": lambda: run(next(numbers))}, rounds, Clock(device))["pipeline"]
    return {**times.summary(), "tokens_per_s": spread([n_rows / seconds for seconds in times.wall])}


def lab_prompts(n_prompts: int, joined: int) -> list[Prompt]:
    """Prompts of the lab; ``joined`` of them make one text, for longer sequences."""
    texts = [prompt.prompt for prompt in as_prompts(LAB / "prompts.jsonl")[: n_prompts * joined]]
    groups = [texts[start : start + joined] for start in range(0, len(texts), joined)]
    return [Prompt(id=f"p{number}", prompt=" ".join(group)) for number, group in enumerate(groups)]


def random_llama(folder: Path, *, n_layers: int = 8, d_model: int = 512) -> Path:
    """Save a Llama with random weights and the tokenizer of the lab."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(LAB / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "harvest_cpu.json", rounds=25)
    parser.add_argument("--models", nargs="+", choices=("lab", "llama_8x512"), default=["lab", "llama_8x512"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each model and write one result file."""
    arguments = options().parse_args(argv)
    began, rounds = begin(arguments)
    results = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if name == "lab":
                path, site, prompts = LAB / "base", Site(1), lab_prompts(24 if arguments.quick else 1200, joined=1)
            else:
                size = {"n_layers": 2, "d_model": 64} if arguments.quick else {}
                path = random_llama(folder / "model", **size)
                site, prompts = Site(0 if arguments.quick else 3), lab_prompts(4 if arguments.quick else 16, joined=8)
            results[name] = measure(path, prompts, site, folder, rounds=rounds, device=arguments.device)
        show(name, results[name])
    what = "computing residual streams, against a bare transformers forward that stops at the same block"
    write_report(
        arguments, what=what, began=began, packages=_PACKAGES, body={"seeds": {"model": SEED}, "results": results}
    )


def show(name: str, result: dict[str, Any]) -> None:
    """Print one line per way."""
    print(f"{name}: {result['model']} {result['tokens']} bits equal: {result['bits_equal_bare_eager']}")
    for way, found in result["ways"].items():
        share = found["share_of_bare"]["median"]
        print(f"  {way:<16} {found['tokens_per_s']:10,.0f} tokens/s   {share:.0%} of the bare forward")
    rate = result["pipeline"]["tokens_per_s"]["median"]
    print(f"  {'whole pipeline':<16} {rate:10,.0f} tokens/s, loading and writing included")


if __name__ == "__main__":
    main()
