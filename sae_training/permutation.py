"""A dictionary with its models in another order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_training.errors import SaeTrainingError

if TYPE_CHECKING:
    from sae_training.crosscoder import Crosscoder


@torch.no_grad()
def permuted(crosscoder: Crosscoder, order: Sequence[int]) -> Crosscoder:
    """See `Crosscoder.permuted`."""
    config, n_sites = crosscoder.config, crosscoder.config.n_sites
    if sorted(order) != list(range(config.n_models)):
        raise SaeTrainingError(
            f"permuted: order = {list(order)} does not name each of {config.n_models} models once; "
            f"give a permutation of 0 to {config.n_models - 1}."
        )
    sources = [model * n_sites + site for model in order for site in range(n_sites)]
    features = _feature_order(config.n_dedicated, order, config.d_sae)
    result = type(crosscoder)(
        config.replace(
            model_names=tuple(config.model_names[model] for model in order),
            d_model=config.d_model if isinstance(config.d_model, int) else tuple(config.d_model[m] for m in order),
            n_dedicated=tuple(config.n_dedicated[model] for model in order) if config.n_dedicated else (),
        )
    ).to(crosscoder.device, crosscoder.decoder.dtype)
    result.threshold = result.threshold.double()

    def moved(flat: Tensor) -> Tensor:
        parts = flat.split(list(config.widths), dim=-1)
        return torch.cat([parts[source] for source in sources], dim=-1)

    result.encoder.copy_(moved(crosscoder.encoder)[features])
    result.decoder.copy_(moved(crosscoder.decoder)[features])
    result.b_enc.copy_(crosscoder.b_enc[features])
    result.b_dec_flat.copy_(moved(crosscoder.b_dec_flat))
    result.scale.copy_(crosscoder.scale[sources])
    threshold = crosscoder.threshold
    result.threshold.copy_(threshold[features] if threshold.ndim else threshold)
    return result


def _feature_order(n_dedicated: tuple[int, ...], order: Sequence[int], d_sae: int) -> list[int]:
    """Dedicated features stand at the front in the order of the models; all others keep their places."""
    if not n_dedicated:
        return list(range(d_sae))
    blocks = [list(range(*ends)) for ends in pairwise(accumulate((0, *n_dedicated)))]
    return [feature for model in order for feature in blocks[model]] + list(range(sum(n_dedicated), d_sae))
