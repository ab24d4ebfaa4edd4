"""A dictionary with its models in another order."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError


def permuted(
    config: CrosscoderConfig, tensors: Mapping[str, Tensor], order: Sequence[int]
) -> tuple[CrosscoderConfig, dict[str, Tensor]]:
    """The configuration and the tensors of the dictionary in which place i takes model ``order[i]``.

    Args:
        config: Configuration of the dictionary.
        tensors: Its tensors, as `Crosscoder.tensors` names them.
        order: Every model once.

    Raises:
        SaeTrainingError: ``order`` does not name every model once.
    """
    if sorted(order) != list(range(config.n_models)):
        raise SaeTrainingError(
            f"permuted: order = {list(order)} does not name each of {config.n_models} models once; "
            f"give a permutation of 0 to {config.n_models - 1}."
        )
    changed = config.replace(
        model_names=tuple(config.model_names[model] for model in order),
        d_model=config.d_model if isinstance(config.d_model, int) else tuple(config.d_model[m] for m in order),
        n_dedicated=tuple(config.n_dedicated[model] for model in order) if config.n_dedicated else (),
    )
    sources = [model * config.n_sites + site for model in order for site in range(config.n_sites)]
    blocks = torch.arange(config.d_all).split(list(config.widths))
    columns = torch.cat([blocks[source] for source in sources])
    latents = _latent_order(config.n_dedicated, order, config.d_sae)
    threshold = tensors["threshold"]
    return changed, {
        "W_enc": tensors["W_enc"][columns][:, latents],
        "W_dec": tensors["W_dec"][latents][:, columns],
        "b_enc": tensors["b_enc"][latents],
        "b_dec": tensors["b_dec"][columns],
        "scale": tensors["scale"][sources],
        "threshold": threshold[latents] if threshold.ndim else threshold,
    }


def _latent_order(n_dedicated: tuple[int, ...], order: Sequence[int], d_sae: int) -> list[int]:
    """Dedicated latents come first, in the order of the models; all others keep their places."""
    if not n_dedicated:
        return list(range(d_sae))
    blocks = [list(range(*ends)) for ends in pairwise(accumulate((0, *n_dedicated)))]
    return [latent for model in order for latent in blocks[model]] + list(range(sum(n_dedicated), d_sae))
