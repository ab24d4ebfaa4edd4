"""Recording the residual stream after a block (hook ``resid_post``).

`residuals_bridge` records through TransformerBridge with ``stop_at_layer``. `residuals_plain` records with a forward hook on
the transformers block and ends the forward pass after the deepest site. Both agree bit by bit, except for architectures
whose fused weights the bridge splits; `mechprobe.cache.harvest.forward_batches` compares them before it uses the latter.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mechprobe.errors import ModelError, first_line, is_out_of_memory
from mechprobe.memory import in_parts
from mechprobe.models.blocks import forward_inputs, recording
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site


@torch.no_grad()
def residuals_plain(
    model: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    sites: Sequence[Site],
    *,
    most: int | None = None,
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Record residuals of the plain transformers model; blocks after the deepest site do not run.

    Rows that are padded on the left are padded on the right instead where the architecture needs it. ``most`` is the largest number
    of rows in a forward pass, see `mechprobe.memory.in_parts`.
    """
    hf = model.hf
    shift = None if model.behaviour.padding or bool(attention_mask[:, 0].all()) else (attention_mask == 0).sum(dim=1)
    if shift is not None:
        ids, attention_mask = rolled(ids, -shift), rolled(attention_mask, -shift)

    def read(rows: slice) -> dict[Site, Tensor]:
        with recording(hf, sites) as resid:
            hf(input_ids=ids[rows], **forward_inputs(hf, attention_mask[rows], device=ids.device))
        return resid

    resid = _joined(in_parts(read, len(ids), most=most, what="Residuals"))
    return {site: values if shift is None else rolled(values, shift) for site, values in resid.items()}


def _joined(parts: Sequence[dict[Site, Tensor]]) -> dict[Site, Tensor]:
    """The residuals of all parts of a batch."""
    return parts[0] if len(parts) == 1 else {site: torch.cat([part[site] for part in parts]) for site in parts[0]}


def rolled(rows: Shaped[Tensor, "batch pos *rest"], by: Int[Tensor, " batch"]) -> Shaped[Tensor, "batch pos *rest"]:
    """Roll every row along its positions by a number of its own."""
    places = (torch.arange(rows.shape[1], device=rows.device) - by.to(rows.device)[:, None]) % rows.shape[1]
    return torch.stack([row[place] for row, place in zip(rows, places, strict=True)])


@torch.no_grad()
def residuals_bridge(
    model: LanguageModel, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """Record residuals through TransformerBridge; blocks after the deepest site do not run.

    Raises:
        ModelError: The bridge cannot run the architecture, or has no hook of that name. (transformer-lens 3.9 itself returns
            an empty cache.)
    """

    def read(rows: slice) -> dict[Site, Tensor]:
        return _bridge_residuals(model, ids[rows], attention_mask[rows], sites)

    return _joined(in_parts(read, len(ids), what="Residuals"))


def _bridge_residuals(
    model: LanguageModel, ids: Tensor, attention_mask: Tensor, sites: Sequence[Site]
) -> dict[Site, Tensor]:
    bridge = model.bridge
    names = [site.hook_name for site in sites]
    inputs = forward_inputs(bridge.original_model, attention_mask, device=ids.device)
    try:
        _, cache = bridge.run_with_cache(ids, names_filter=names, stop_at_layer=max(sites).layer + 1, **inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # The bridge wraps some architectures, such as hybrid ones, without being able to run them.
        raise ModelError(
            f"Model {model.name}: TransformerBridge cannot run its architecture ({first_line(error)})."
        ) from None
    missing = [name for name in names if name not in cache]
    if missing:
        raise ModelError(f"Model {model.name}: TransformerBridge has no hook {missing[0]} for its architecture.")
    return {site: cache[site.hook_name] for site in sites}
