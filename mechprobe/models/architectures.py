"""Whether an architecture runs as mechprobe needs it: padding on the left, the KV cache, and one residual per block.

Every causal architecture of transformers was tried at tiny size (``tests/models/test_every_architecture.py``). For the types in
`_EXACT` nothing is measured again. Every other model is measured once, right after its weights are loaded, by `measured`.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from mechprobe.errors import ModelError, is_out_of_memory
from mechprobe.models.blocks import find_blocks, first_output, forward_inputs
from mechprobe.models.devices import input_device


@dataclass(frozen=True)
class Behaviour:
    """How a model runs.

    Attributes:
        padding: Whether padding on the left changes nothing. Otherwise only prompts of equal length share a batch.
        generation: Why responses would be wrong, as the end of a sentence; empty where they are exact.
        residual: Why the residual cannot be read or edited, as the end of a sentence; empty where it can.
    """

    padding: bool = True
    generation: str = ""
    residual: str = ""


_EXACT = frozenset(
    {
        "afmoe", "apertus", "arcee", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
        "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3",
    }
)  # fmt: skip
"""Types with plain attention that were found exact, whatever their config says."""
_STREAMS = "keeps several residual streams per position, so a block has no single residual [batch, pos, d_model]"
_KNOWN = {"gemma3n": Behaviour(residual=_STREAMS), "gemma3n_text": Behaviour(residual=_STREAMS)}
_N_NEW = 4
_LENGTHS = (17, 5)
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of logits that counts as rounding, relative to the largest logit; 0.05 in 16 bits (ours)."""


def known_behaviour(config: Any) -> Behaviour | None:
    """What is known of the architecture of a config; None where it must be measured."""
    kind = getattr(config, "model_type", "")
    if not type(config).__module__.startswith("transformers."):
        return None
    return Behaviour() if kind in _EXACT else _KNOWN.get(kind)


def is_exact(config: Any) -> bool:
    """Whether the architecture of a config is one with plain attention that was found exact."""
    return type(config).__module__.startswith("transformers.") and getattr(config, "model_type", "") in _EXACT


_measured: "weakref.WeakKeyDictionary[nn.Module, Behaviour]" = weakref.WeakKeyDictionary()


def behaviour_of(model: PreTrainedModel) -> Behaviour:
    """What is known of a model; a model of an unknown architecture is measured on first use, without edits in force."""
    found = known_behaviour(model.config) or _measured.get(model)
    if found is None:
        found = _measured[model] = measured(model)
    return found


def require_generation(model: PreTrainedModel, name: str) -> Behaviour:
    """Raise `ModelError` for a model whose responses would be wrong."""
    found = behaviour_of(model)
    if found.generation:
        raise ModelError(refusal(model.config, name, found.generation))
    return found


def require_residual(model: nn.Module, name: str) -> None:
    """Raise `ModelError` for a model whose blocks give no residual ``[batch pos d_model]``."""
    found = behaviour_of(model)  # pyright: ignore[reportArgumentType]
    if found.residual:
        raise ModelError(refusal(model.config, name, found.residual))


def refusal(config: Any, name: str, reason: str) -> str:
    """The sentence that refuses an architecture by name."""
    return f"Model {name}: the architecture {config.model_type} {reason}; it is not supported."


@torch.no_grad()
def measured(model: PreTrainedModel) -> Behaviour:
    """Measure how a model runs, on two rows of random tokens and `_N_NEW` generated ones.

    Greedy generation of both rows, padded and with the KV cache, is compared with forward calls on the same tokens without
    padding and cache. The lengths lie below most sliding windows, which therefore are not reached.
    """
    device, generator = input_device(model), torch.Generator().manual_seed(0)
    weight: Any = model.get_input_embeddings().weight
    top = min(int(model.config.get_text_config().vocab_size), int(weight.shape[0]))
    rows = [torch.randint(min(4, top - 1), top, (length,), generator=generator).to(device) for length in _LENGTHS]
    residual = _residual_fault(model, rows[0][None])
    try:
        if agrees(model, rows) or not torch.isfinite(_logits(model, rows[0][None])).all():
            return Behaviour(residual=residual)  # logits that are not finite are found in generation itself
        if all(agrees(model, [row]) for row in rows):
            return Behaviour(padding=False, residual=residual)
        full, part = _logits(model, rows[0][None]), _logits(model, rows[0][None, :-5])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else ""
        return Behaviour(generation=f"cannot generate ({type(error).__name__}: {reason})", residual=residual)
    if not _close(part, full[:, :-5]):
        reason = "is not causal: later tokens change the logits of earlier ones"
        return Behaviour(generation=reason, residual=residual or reason)
    return Behaviour(generation="generates with its cache what it does not generate without it", residual=residual)


def _residual_fault(model: PreTrainedModel, ids: Int[Tensor, "1 pos"]) -> str:
    """Why the blocks give no residual ``[1 pos d_model]``; empty where each gives one in a forward call."""
    shapes: list[tuple[int, ...]] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        value = first_output(output)
        shapes.append(tuple(value.shape) if isinstance(value, Tensor) else ())

    try:
        blocks = find_blocks(model)
    except ModelError:
        return "has no list of blocks"
    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        _logits(model, ids)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"cannot run on {ids.shape[1]} tokens ({type(error).__name__})"
    finally:
        for handle in handles:
            handle.remove()
    expected = (*ids.shape, int(model.config.get_text_config().hidden_size))
    other = next((shape for shape in shapes if shape != expected), None)
    if other is not None:
        shown = list(other) or "no tensor"
        return f"gives {shown} after a block, where a residual is {list(expected)}"
    if len(shapes) != len(blocks):
        return f"runs its {len(blocks)} blocks {len(shapes)} times in a forward call"
    return ""


def agrees(model: PreTrainedModel, rows: Sequence[Tensor]) -> bool:
    """Whether generation of a batch of rows ``[pos]`` gives the logits of forward calls on each row, without a cache."""
    width = max(map(len, rows))
    ids = torch.stack([nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    config = GenerationConfig(
        max_new_tokens=_N_NEW, pad_token_id=0, do_sample=False, use_cache=True, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    output = plain_generate(model, input_ids=ids, attention_mask=mask, generation_config=config)
    logits = torch.stack(output.logits, dim=1)
    for index, row in enumerate(rows):
        tokens = torch.cat([row, output.sequences[index, width:-1]])
        if not _close(logits[index], _logits(model, tokens[None])[0, len(row) - 1 :]):
            return False
    return True


def _logits(model: PreTrainedModel, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    call: Any = model
    return call(input_ids=ids, **forward_inputs(model, torch.ones_like(ids))).logits


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = _TOLERANCE.get(expected.dtype, 0.05)
    found, expected = found.float(), expected.float().to(found.device)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def plain_generate(model: Any, **inputs: Any) -> Any:
    """Generate with the given settings alone, because those in a model's folder may differ between models."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return model.generate(**inputs)
    finally:
        model.generation_config = own
