"""Reading and rewriting the residual stream after a block.

Two readers: `residuals_bridge` (TransformerBridge, ``stop_at_layer``) and `residuals_plain` (a forward hook on the
transformers block, stopped early: what generation runs on). Their bits are equal but for architectures whose fused weights
the bridge splits; `mechprobe.cache.harvest.model_reader` compares them before a store is made the faster way.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site

ResidEdit = Callable[[Tensor], Tensor]
"""Maps the residual ``[batch pos d_model]`` of one forward call to the residual that goes on."""


class StopForwardError(Exception):
    """Raised by a hook to end a forward pass once everything asked for is read."""


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of blocks of a transformers causal language model (or of the model inside a bridge).

    It is the shallowest ModuleList whose length is the number of layers in the config; `ModelError` where none is.
    """
    config: Any = getattr(model, "config", None)
    n_layers = config.get_text_config().num_hidden_layers
    found = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of {n_layers} blocks; its architecture is not supported.")
    return min(found, key=lambda item: item[0])[1]


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _passed_through(edit: ResidEdit, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A block's output with its residual edited; None, which keeps the output, where the edit gave it back."""
    resid = _first_tensor(output)
    edited = edit(resid)
    if edited is resid:
        return None
    return edited if isinstance(output, Tensor) else (edited, *output[1:])


@contextmanager
def splice(model: nn.Module, site: Site, edit: ResidEdit) -> Iterator[None]:
    """Pass the residual at ``site`` through ``edit`` in every forward call inside the block.

    Works in forward and in generation with a KV cache (``edit`` then sees the new positions only). The hook is
    gone on every exit. When ``edit`` returns the very tensor it was given, the forward pass is untouched.
    """
    blocks = find_blocks(model)
    site.check(len(blocks))
    handle = blocks[site.layer].register_forward_hook(partial(_passed_through, edit))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def reading(model: nn.Module, sites: Sequence[Site], *, stop: bool = True) -> Iterator[dict[Site, Tensor]]:
    """Collect residuals at ``sites`` into the yielded dict during the forward call inside the block.

    With ``stop`` that call ends after the deepest site, and so does the block.
    """
    into: dict[Site, Tensor] = {}
    deepest = max(sites)

    def reader(site: Site) -> ResidEdit:
        def read(resid: Tensor) -> Tensor:
            into[site] = resid
            if stop and site == deepest:
                raise StopForwardError
            return resid

        return read

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(splice(model, site, reader(site)))
        with suppress(StopForwardError):
            yield into


def position_ids(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions counted from the first unmasked token of each row, as generation with left padding counts them."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def forward_inputs(
    model: nn.Module, attention_mask: Int[Tensor, "batch pos"], *, use_cache: bool = False
) -> dict[str, Tensor | bool]:
    """Mask, positions where padding is on the left, and whether a KV cache is wanted, as far as the model takes them.

    A cache costs a copy of keys and values, and for some shapes attention then multiplies matrices of another memory
    layout, which changes the last bit: so what reads residuals goes without.
    """
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor | bool] = {"attention_mask": attention_mask}
    padded_left = not bool(attention_mask[:, 0].all())  # else the model's own count is right, and one row for all
    if "position_ids" in takes and padded_left:  # ALiBi models count for themselves
        inputs["position_ids"] = position_ids(attention_mask)
    if "use_cache" in takes:
        inputs["use_cache"] = use_cache
    return inputs


@torch.no_grad()
def residuals_plain(
    model: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    sites: Sequence[Site],
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Residuals of the plain transformers model, stopped after the deepest site (later blocks never run)."""
    with reading(model.hf, sites) as resid:
        model.hf(input_ids=ids, **forward_inputs(model.hf, attention_mask))
    return dict(resid)


@torch.no_grad()
def residuals_bridge(
    model: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    sites: Sequence[Site],
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Residuals through TransformerBridge, stopped after the deepest site (later blocks never run).

    Raises:
        ModelError: The bridge offers no hook of that name (transformer-lens 3.9 would return an empty cache).
    """
    bridge = model.bridge
    names = [site.hook_name for site in sites]
    _, cache = bridge.run_with_cache(
        ids,
        names_filter=names,
        stop_at_layer=max(sites).layer + 1,
        **forward_inputs(bridge.original_model, attention_mask),
    )
    missing = [name for name in names if name not in cache]
    if missing:
        raise ModelError(f"Model {model.name}: TransformerBridge has no hook {missing[0]}; the architecture lacks it.")
    return {site: cache[site.hook_name] for site in sites}
