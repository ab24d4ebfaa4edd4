"""Recording and editing the residual stream after a block (hook ``resid_post``).

`residuals_bridge` records through TransformerBridge with ``stop_at_layer``. `residuals_plain` records with a forward hook on
the transformers block and ends the forward pass after the deepest site. Both agree bit by bit, except for architectures
whose fused weights the bridge splits; `mechprobe.cache.harvest.forward_batches` compares them before it uses the latter.
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
"""Maps the residual ``[batch pos d_model]`` of one forward call to the residual that the next block receives."""


class StopForwardError(Exception):
    """Raised by a hook to end a forward pass after the deepest site."""


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the list of blocks of a transformers causal language model, or of the model inside a bridge.

    It is the shallowest ModuleList whose length is the number of layers in the config.

    Raises:
        ModelError: The model has no such list.
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


def _passed_through(edit: ResidEdit, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Edit the residual in the output of a block; None, which keeps the output, if the edit returned its input."""
    resid: Tensor = output if isinstance(output, Tensor) else output[0]
    edited = edit(resid)
    if edited is resid:
        return None
    return edited if isinstance(output, Tensor) else (edited, *output[1:])


@contextmanager
def splice(model: nn.Module, site: Site, edit: ResidEdit) -> Iterator[None]:
    """Pass the residual at ``site`` through ``edit`` in every forward call inside the ``with`` block.

    During generation with a KV cache, ``edit`` receives the new positions only. If ``edit`` returns its input tensor itself,
    the forward pass stays as it was. The hook is removed on every exit.

    Raises:
        SiteError: The model has no such site.
    """
    blocks = find_blocks(model)
    site.check(len(blocks))
    handle = blocks[site.layer].register_forward_hook(partial(_passed_through, edit))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recording(model: nn.Module, sites: Sequence[Site], *, stop: bool = True) -> Iterator[dict[Site, Tensor]]:
    """Record residuals ``[batch pos d_model]`` during the forward call inside the ``with`` block.

    Args:
        model: Plain transformers model.
        sites: Sites to record.
        stop: Whether to end the forward call, and with it the ``with`` block, after the deepest site.

    Yields:
        A dict that the forward call fills.
    """
    found: dict[Site, Tensor] = {}
    deepest = max(sites)

    def recorder(site: Site) -> ResidEdit:
        def record(resid: Tensor) -> Tensor:
            found[site] = resid
            if stop and site == deepest:
                raise StopForwardError
            return resid

        return record

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(splice(model, site, recorder(site)))
        with suppress(StopForwardError):
            yield found


def position_ids(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions counted from the first unmasked token of each row, as in generation with left padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def forward_inputs(
    model: nn.Module, attention_mask: Int[Tensor, "batch pos"], *, use_cache: bool = False
) -> dict[str, Tensor | bool]:
    """Arguments of a forward call beside the token ids, as far as the model accepts them.

    They are the mask, the positions if padding is on the left, and whether to build a KV cache. Recording uses no cache:
    it copies keys and values, and for some shapes attention then multiplies matrices of another memory layout, which
    changes the last bit.
    """
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor | bool] = {"attention_mask": attention_mask}
    padded_left = not bool(attention_mask[:, 0].all())  # otherwise the model counts positions correctly by itself
    if "position_ids" in takes and padded_left:  # ALiBi models take no positions
        inputs["position_ids"] = position_ids(attention_mask)
    if "use_cache" in takes:
        inputs["use_cache"] = use_cache
    return inputs


@torch.no_grad()
def residuals_plain(
    model: LanguageModel, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Record residuals of the plain transformers model; blocks after the deepest site do not run."""
    with recording(model.hf, sites) as resid:
        model.hf(input_ids=ids, **forward_inputs(model.hf, attention_mask))
    return dict(resid)


@torch.no_grad()
def residuals_bridge(
    model: LanguageModel, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Record residuals through TransformerBridge; blocks after the deepest site do not run.

    Raises:
        ModelError: The bridge has no hook of that name. (transformer-lens 3.9 itself returns an empty cache.)
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
        raise ModelError(f"Model {model.name}: TransformerBridge has no hook {missing[0]} for its architecture.")
    return {site: cache[site.hook_name] for site in sites}
