"""Functions of a crosscoder's configuration and fused weights: starting values, masks, norms and scales."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.config import CrosscoderConfig


def source_norms(decoders: Sequence[Float[Tensor, "d_sae _"]]) -> Float[Tensor, "source d_sae"]:
    """||W_dec[k, m]||_2 of each source's decoders."""
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in decoders])


def sum_of_norms(decoder: Float[Tensor, "d_sae d_all"], widths: Sequence[int]) -> Float[Tensor, " d_sae"]:
    """sum_m ||W_dec[k, m]||_2 over the sources, whose decoders are side by side in the columns."""
    return source_norms(decoder.split(list(widths), dim=1)).sum(dim=0)


def mean_norm_scale(x: Float[Tensor, "batch d_all"], widths: Sequence[int]) -> Float[Tensor, " source"]:
    """Mean L2 norm of each source over sqrt(d_model); activations divided by it have mean norm sqrt(d_model)."""
    parts = x.double().split(list(widths), dim=1)
    norms = [torch.linalg.vector_norm(part, dim=1).mean() / part.shape[1] ** 0.5 for part in parts]
    return torch.stack(norms).float()


def column_scale(scale: Float[Tensor, " source"], widths: Sequence[int]) -> Float[Tensor, " d_all"]:
    """The scale of each column of the fused weights; 1 for all columns where no scale was set (NaN)."""
    if bool(torch.isnan(scale).any()):
        scale = torch.ones_like(scale)
    return scale.repeat_interleave(torch.tensor(widths, device=scale.device))


def initial_decoder(config: CrosscoderConfig) -> Float[Tensor, "d_sae d_all"]:
    """Random directions of norm ``decoder_init_norm`` per source; the models share them with ``shared_init``.

    Directions of different sites are independent. Latents designated as shared always have one direction in all models.
    """
    generator = torch.Generator().manual_seed(config.seed)
    norm = config.decoder_init_norm
    if norm is None:
        norm = 0.08 if config.variant == "l1" else config.n_sources**-0.5
    # Sources are drawn model by model: models that share their directions need one draw per site.
    n_draws = config.n_sites if config.shared_init and config.same_width else config.n_sources
    parts = []
    for width in config.widths[:n_draws]:
        direction = torch.randn(config.d_sae, width, generator=generator)
        parts.append(norm * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True))
    if n_draws < config.n_sources:
        parts = parts * config.n_models
    decoder = torch.cat(parts, dim=1)
    if config.n_shared:
        tied = decoder[config.shared_rows, : config.d_all // config.n_models]
        decoder[config.shared_rows] = tied.repeat(1, config.n_models)
    mask = dedicated_mask(config)
    return decoder if mask is None else decoder * mask


def dedicated_mask(config: CrosscoderConfig) -> Float[Tensor, "d_sae d_all"] | None:
    """0 where a latent is dedicated to another model, so that its weight stays zero, and 1 elsewhere.

    Returns:
        None if no latent is dedicated to a model.
    """
    if not sum(config.n_dedicated):
        return None
    mask = torch.ones(config.d_sae, config.d_all)
    n_sites, first, column = config.n_sites, 0, 0
    for model, count in enumerate(config.n_dedicated):
        width = sum(config.widths[model * n_sites : (model + 1) * n_sites])
        mask[first : first + count] = 0.0
        mask[first : first + count, column : column + width] = 1.0
        first, column = first + count, column + width
    return mask
