"""Generation speed under edits as a share of plain generation, on the lab's models and on an 8-layer Llama of width 512.

    python -m benchmarks.intervene --out artifacts/benchmarks/intervene_cpu.json

The reference is `transformers.generate` with the same weights, eager attention, the same left-padded prompts and a KV cache, on a
model without hooks. Generation with sdpa attention, whose results are not bit-identical, is timed as well. Compared are
generation inside `edited` without features (hooks that change nothing), with 50 features ablated or clamped under the swap
read-out (one model runs), with 50 features ablated or transplanted under the joint read-out (three models run up to the site),
and with the reconstruction in place of the residual. Timings include entering and leaving the context. Every way generates
the same number of tokens greedily, and no response ends early.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.harvest import LAB, random_llama
from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from benchmarks.timing import Clock, ratios, take_turns
from mechprobe.dictionary.readout import Readout
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import left_pad
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

SEED = 0
NAMES = ("base", "sft", "rl")
HOST, DONOR = "base", "rl"
N_FEATURES = 50
PLAIN = "plain_eager"
TARGETS = {"empty_hook": 0.9, "swap_ablate": 0.7, "joint_ablate": 0.28}
"""Required share of plain generation for hooks alone, for an edit of one model, and for an edit that reads three models."""
_PACKAGES = ("torch", "transformers")

Inputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement.

    Attributes:
        site: Site of the edit; siblings run up to it.
        d_sae: Features of the crosscoder.
        prompts: Prompts in the batch.
        joined: Lab prompts that are joined into one prompt.
        new_tokens: Tokens generated for each prompt.
    """

    site: Site
    d_sae: int
    prompts: int
    joined: int
    new_tokens: int


SETTINGS = {
    "lab": Setting(Site(2), d_sae=1024, prompts=64, joined=1, new_tokens=48),
    "llama_8x512": Setting(Site(3), d_sae=4096, prompts=16, joined=8, new_tokens=32),
}
QUICK = {
    "lab": Setting(Site(2), d_sae=64, prompts=2, joined=1, new_tokens=3),
    "llama_8x512": Setting(Site(0), d_sae=64, prompts=2, joined=2, new_tokens=3),
}


def measure(folders: Mapping[str, Path], setting: Setting, *, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Time every way to generate, in turns.

    Returns:
        Per way, the spread of seconds, tokens per second, and the share of plain generation; ``same_tokens`` says whether the
        ways that change nothing generate the tokens of plain generation.
    """
    family = ModelFamily.load(folders, device=device)
    inputs = prompt_batch(family, setting)
    plain = {f"plain_{name}": load_plain(folders[HOST], name, device) for name in ("eager", "sdpa")}
    ways: dict[str, Callable[[], Tensor]] = {
        name: lambda model=model: generated(model, inputs, setting) for name, model in plain.items()
    }
    ways |= edited_ways(family, inputs, setting)
    expected = ways[PLAIN]()
    same = {name: torch.equal(ways[name](), expected) for name in ("plain_sdpa", "empty_hook")}
    assert same["empty_hook"], "hooks that change nothing changed tokens"
    times = take_turns(ways, rounds, Clock(device))
    n_tokens = setting.prompts * setting.new_tokens
    results: dict[str, Any] = {}
    for name, found in times.items():
        results[name] = {
            **found.summary(),
            "tokens_per_s": n_tokens / statistics.median(found.wall),
            "share_of_plain": ratios(times[PLAIN].wall, found.wall),
        }
        if name in TARGETS:
            results[name]["target"] = TARGETS[name]
    host = family[HOST]
    return {
        "model": {"layers": host.n_layers, "d_model": host.d_model, "dtype": host.dtype},
        "setting": {**setting.__dict__, "site": str(setting.site), "prompt_tokens": int(inputs[0].shape[1])},
        "features_edited": min(N_FEATURES, setting.d_sae),
        "same_tokens": same,
        "ways": results,
    }


def prompt_batch(family: ModelFamily, setting: Setting) -> Inputs:
    """Prompts of the lab as one left-padded batch."""
    tokenizer = family.tokenizer
    with (LAB / "prompts.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in islice(lines, setting.prompts * setting.joined)]
    groups = [texts[start : start + setting.joined] for start in range(0, len(texts), setting.joined)]
    rows = [tokenizer(" ".join(group)).input_ids for group in groups]
    return left_pad(rows, int(str(tokenizer.pad_token_id)), family[HOST].device)


def load_plain(folder: Path, attention: str, device: str) -> Any:
    """The model as transformers loads it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    return model.eval().to(device)


@torch.no_grad()
def generated(model: Any, inputs: Inputs, setting: Setting) -> Tensor:
    """The prompts followed by exactly ``new_tokens`` generated tokens each, ``[batch pos]``."""
    ids, mask = inputs
    model.generation_config = GenerationConfig()  # the settings of the model folder would end responses early
    config = GenerationConfig(max_new_tokens=setting.new_tokens, do_sample=False, use_cache=True, pad_token_id=0)
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert output.shape[1] == ids.shape[1] + setting.new_tokens, "a response ended early"
    return output


def edited_ways(family: ModelFamily, inputs: Inputs, setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """Functions that generate under each edit that is timed, by name."""
    crosscoder = random_crosscoder(family, setting)
    features = list(range(0, setting.d_sae, max(1, setting.d_sae // N_FEATURES)))[:N_FEATURES]

    def way(edit: str, ids: Sequence[int], readout: str = "swap") -> Callable[[], Tensor]:
        def run() -> Tensor:
            with edited(
                family[HOST],
                crosscoder,
                ids,
                edit,
                site=setting.site,
                donor=DONOR if edit == "transplant" else None,
                siblings=family,
                readout=Readout(readout),  # pyright: ignore[reportArgumentType]
            ) as model:
                return generated(model, inputs, setting)

        return run

    return {
        "empty_hook": way("ablate", []),
        "swap_ablate": way("ablate", features),
        "swap_clamp": way("clamp:3.0", features),
        "swap_replace": way("replace", []),
        "joint_ablate": way("ablate", features, "joint"),
        "joint_transplant": way("transplant", features, "joint"),
    }


def random_crosscoder(family: ModelFamily, setting: Setting) -> Crosscoder:
    """An untrained crosscoder; the cost of an edit does not depend on the features."""
    config = CrosscoderConfig(
        n_models=len(NAMES), d_model=family[HOST].d_model, d_sae=setting.d_sae, k=4, model_names=NAMES, seed=SEED
    )
    crosscoder = Crosscoder(config)
    crosscoder.set_scale(
        [1.0, 1.1, 1.2]
    )  # without different scales a transplant between equal decoders would change nothing
    return crosscoder.eval().to(family[HOST].device)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "intervene_cpu.json", rounds=7)
    parser.add_argument("--models", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each family and write one result file."""
    arguments = options().parse_args(argv)
    began, rounds = begin(arguments)
    results = {}
    for name in arguments.models:
        setting = (QUICK if arguments.quick else SETTINGS)[name]
        with tempfile.TemporaryDirectory() as scratch:
            if name == "lab":
                folders = {model: LAB / model for model in NAMES}
            else:
                size = {"n_layers": 2, "d_model": 64} if arguments.quick else {}
                path = random_llama(Path(scratch) / "model", **size)
                folders = {model: path for model in NAMES}
            results[name] = measure(folders, setting, rounds=rounds, device=arguments.device)
        show(name, results[name])
    what = "generation under an edit, against plain transformers generation with the same weights"
    write_report(
        arguments, what=what, began=began, packages=_PACKAGES, body={"seeds": {"all": SEED}, "results": results}
    )


def show(name: str, result: dict[str, Any]) -> None:
    """Print one line per way."""
    print(f"{name}: {result['model']} {result['setting']} same tokens: {result['same_tokens']}")
    for way, found in result["ways"].items():
        share, target = found["share_of_plain"]["median"], found.get("target")
        asked = f" (asked for: {target:.0%})" if target else ""
        print(f"  {way:<17} {found['tokens_per_s']:9,.0f} tokens/s   {share:.0%} of plain generation{asked}")


if __name__ == "__main__":
    main()
