"""Hooks on the blocks of a transformers model, and the arguments of its forward calls."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.types import Site
from sae_training.stream import sent

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


def first_output(output: Any) -> Any:
    """What a block gives to the next one: its output, or the first part of a plain tuple or list."""
    return output[0] if type(output) in (tuple, list) and output else output


def _passed_through(edit: ResidEdit, width: int, module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Edit the residual in the output of a block; None, which keeps the output, if the edit returned its input."""
    resid = first_output(output)
    if not isinstance(resid, Tensor) or resid.ndim != 3 or resid.shape[-1] != width:
        shape = list(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
        raise ModelError(
            f"{type(module).__name__} gives {shape}, where a residual is [batch, pos, {width}]; its architecture is not supported."
        )
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
        ModelError: In a forward call: the block gives something else than one residual.
    """
    blocks = find_blocks(model)
    site.check(len(blocks))
    config: Any = model.config
    width = int(config.get_text_config().hidden_size)
    handle = blocks[site.layer].register_forward_hook(partial(_passed_through, edit, width))
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
    model: nn.Module,
    attention_mask: Int[Tensor, "batch pos"],
    *,
    use_cache: bool = False,
    device: torch.device | None = None,
) -> dict[str, Tensor | bool]:
    """Arguments of a forward call beside the token ids, as far as the model accepts them.

    They are the mask, the positions if padding is on the left, and whether to build a KV cache. Recording uses no cache:
    it copies keys and values, and for some shapes attention then multiplies matrices of another memory layout, which
    changes the last bit.

    Tensors are moved to ``device``. A mask on the CPU is looked at there, so that nothing waits for the device.
    """
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor | bool] = {"attention_mask": attention_mask}
    padded_left = not bool(attention_mask[:, 0].all())  # otherwise the model counts positions correctly by itself
    if "position_ids" in takes and padded_left:  # ALiBi models take no positions
        inputs["position_ids"] = position_ids(attention_mask)
    if "use_cache" in takes:
        inputs["use_cache"] = use_cache
    if device is None:
        return inputs
    return {name: sent(value, device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
