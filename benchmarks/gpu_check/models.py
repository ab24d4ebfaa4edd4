"""Step ``models``: residuals, and generation under edits, on the device against the CPU in float32.

Greedy responses are compared token by token, and the logits as far as the tokens agree. The prompts have different lengths,
so the batch is padded on the left; generation uses a KV cache; transplants and the joint read-out run the siblings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks.gpu_check.record import Record, relative_error
from benchmarks.harvest import LAB, lab_prompts, random_llama
from benchmarks.intervene import DONOR, HOST, NAMES, Inputs, Setting, prompt_batch, random_crosscoder
from benchmarks.waits import count_waits
from mechprobe.cache.stage import cache_activations
from mechprobe.dictionary.readout import Readout
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.types import Site

FLOAT32, BFLOAT16 = 1e-4, 3e-2
"""Largest relative error of residuals and logits: another order of float32 sums, and a few layers of bfloat16."""
SAME_TOKENS = 0.02
"""Largest share of responses whose greedy tokens may differ: two logits can be equal but for rounding."""
EDITS = (
    ("none", "ablate", "swap", "all"),
    ("ablate, swap", "ablate", "swap", "all"),
    ("clamp, swap, response", "clamp:3.0", "swap", "response"),
    ("replace, swap", "replace", "swap", "all"),
    ("ablate, joint", "ablate", "joint", "all"),
    ("transplant, joint", "transplant", "joint", "all"),
    ("transplant, swap, prompt", "transplant", "swap", "prompt"),
)
"""Name, edit, read-out and positions."""


@dataclass(frozen=True)
class Case:
    """One family and the sizes of its checks."""

    name: str
    folders: Mapping[str, Path]
    setting: Setting


def cases(record: Record, scratch: Path) -> Iterator[Case]:
    """The lab, whose models are trained and differ, and a random Llama, whose float32 sums are longer."""
    lab = {name: LAB / name for name in NAMES}
    if record.tiny:
        yield Case("lab", lab, Setting(Site(1), d_sae=48, prompts=5, joined=1, new_tokens=4))
        return
    yield Case("lab", lab, Setting(Site(2), d_sae=1024, prompts=128, joined=1, new_tokens=32))
    llama = random_llama(scratch / "llama")
    yield Case(
        "llama 8x512", dict.fromkeys(NAMES, llama), Setting(Site(3), d_sae=4096, prompts=32, joined=6, new_tokens=32)
    )


def run(record: Record) -> None:
    """Check every family."""
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(record, Path(scratch)):
            _check_harvest(record, case, Path(scratch) / case.name)
            _check_generation(record, case)
            _check_bfloat16(record, case)


def _check_harvest(record: Record, case: Case, scratch: Path) -> None:
    prompts = lab_prompts(case.setting.prompts * case.setting.joined, case.setting.joined)
    rows = []
    for device in ("cpu", record.device):
        family = ModelFamily.load({HOST: case.folders[HOST]}, device=device)
        store = cache_activations(family, prompts, [case.setting.site], scratch / f"{len(rows)}")
        rows.append(next(iter(store.batches(store.n_rows, split="all"))))
    record.check(f"{case.name}: residuals, float32", relative_error(rows[1], rows[0]), FLOAT32)


def families(record: Record, case: Case, dtype: str = "float32") -> tuple[ModelFamily, ModelFamily]:
    """The family on the CPU in float32, and on the device."""
    on_cpu = ModelFamily.load(case.folders)
    return on_cpu, ModelFamily.load(case.folders, device=record.device, dtype=dtype)


def _edit(family: ModelFamily, case: Case, edit: tuple[str, str, str, str]) -> Any:
    name, kind, readout, positions = edit
    n_features = min(50, case.setting.d_sae // 4)
    features = [] if name == "none" or kind == "replace" else list(range(0, 4 * n_features, 4))
    return edited(
        family[HOST], random_crosscoder(family, case.setting), features, kind, site=case.setting.site,
        donor=DONOR if kind == "transplant" else None, siblings=family,
        readout=Readout(readout), positions=positions,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


@torch.no_grad()
def generated_logits(model: Any, inputs: Inputs, new_tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens ``[batch new]`` and the logits that chose them ``[batch new vocab]``, on the CPU."""
    ids, mask = inputs
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, use_cache=True, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return found.sequences[:, ids.shape[1] :].cpu(), torch.stack(found.logits, dim=1).float().cpu()


def agreement(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Share of rows with different tokens, and relative error of the logits as far as the tokens before them agree."""
    differs = one[0] != other[0]
    before = (differs.cumsum(dim=1) - differs.long()) == 0
    return float(differs.any(dim=1).double().mean()), relative_error(one[1][before], other[1][before])


def _check_generation(record: Record, case: Case) -> None:
    both = families(record, case)
    for edit in EDITS:
        found = []
        for family in both:
            with _edit(family, case, edit) as model:
                found.append(generated_logits(model, prompt_batch(family, case.setting), case.setting.new_tokens))
        share, error = agreement(found[1], found[0])
        record.check(f"{case.name}, {edit[0]}: logits, float32", error, FLOAT32)
        record.check(f"{case.name}, {edit[0]}: share of rows with other tokens", share, SAME_TOKENS)
    prompts = [prompt.prompt for prompt in lab_prompts(case.setting.prompts, 1)]
    texts = [
        [response.text for response in generate(family[HOST].hf, family.tokenizer, prompts, max_new_tokens=8)]
        for family in both
    ]
    differ = sum(one != other for one, other in zip(*texts, strict=True))
    record.check(f"{case.name}: share of other texts from mechprobe.generate", differ / len(prompts), SAME_TOKENS)
    _count_waits(record, case, both[1])


def _count_waits(record: Record, case: Case, family: ModelFamily) -> None:
    """Waits that an edit adds to those of generation: one per call of the model, for the check of finite numbers.

    The limit leaves room for what happens once in a generation, such as moving constants to the device.
    """
    inputs, counts = prompt_batch(family, case.setting), {}
    for name, context in {
        "plain": nullcontext(family[HOST].hf),
        "swap": _edit(family, case, EDITS[1]),
        "transplant": _edit(family, case, EDITS[5]),
    }.items():
        with context as model, count_waits(record.device) as waits:
            generated_logits(model, inputs, case.setting.new_tokens)
        counts[name] = len(waits.seen)
    record.put(f"{case.name}: waits", counts)
    for name in ("swap", "transplant"):
        added = (counts[name] - counts["plain"]) / case.setting.new_tokens
        record.check(f"{case.name}: waits that {name} adds per token", added, 1.0 if record.tiny else 1.25)


def _check_bfloat16(record: Record, case: Case) -> None:
    """The logits of the prompts, which no generated token changes."""
    on_cpu, on_device = families(record, case, "bfloat16")
    found = []
    for family in (on_cpu, on_device):
        with _edit(family, case, EDITS[1]) as model:
            found.append(generated_logits(model, prompt_batch(family, case.setting), 1)[1])
    record.check(f"{case.name}, {EDITS[1][0]}: logits, bfloat16", relative_error(found[1], found[0]), BFLOAT16)
