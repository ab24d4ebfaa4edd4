"""Functions of a crosscoder's configuration and weights: starting values, masks, norms, scales, model order."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError


def source_norms(decoders: Sequence[Float[Tensor, "d_sae _"]]) -> Float[Tensor, "source d_sae"]:
    """||W_dec[k, m]||_2 of each source's decoders."""
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in decoders])


def sum_of_norms(decoder: Float[Tensor, "d_sae d_all"], widths: Sequence[int]) -> Float[Tensor, " d_sae"]:
    """sum_m ||W_dec[k, m]||_2 over the sources, whose decoders are side by side in the columns."""
    return source_norms(decoder.split(list(widths), dim=1)).sum(dim=0)


FAR = 10.0
"""A token whose norm exceeds this multiple of the median norm is *far* (our rule). A few far tokens, such as attention sinks,
would decide mean norms and the fraction of variance explained."""


def far_norm(norms: Float[Tensor, " token"]) -> float:
    """Norm above which a token is far: `FAR` times the median of the norms; infinity where the median is 0."""
    median = float(norms.median()) if len(norms) else 0.0
    return FAR * median if median > 0 else math.inf


def mean_norm_scale(
    x: Float[Tensor, "batch d_all"], widths: Sequence[int], *, with_far: bool = False
) -> Float[Tensor, " source"]:
    """Mean L2 norm of each source over sqrt(d_model); activations divided by it have mean norm sqrt(d_model).

    Tokens that are far in a source (`far_norm`) count in the mean of that source only with ``with_far``.
    """
    scales = []
    for part in x.double().split(list(widths), dim=1):
        norms = torch.linalg.vector_norm(part, dim=1)
        counted = norms if with_far else norms[norms <= far_norm(norms)]
        scales.append(counted.mean() / part.shape[1] ** 0.5)
    return torch.stack(scales).float()


def checked_scale(scale: Float[Tensor, " source"] | Sequence[float], n_sources: int) -> Float[Tensor, " source"]:
    """The scale as float32; raise `SaeTrainingError` if it is not one positive, finite number for each source."""
    values = torch.as_tensor(scale, dtype=torch.float32)
    if values.shape != (n_sources,):
        raise SaeTrainingError(
            f"scale has shape {tuple(values.shape)}; give one number for each of {n_sources} sources."
        )
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise SaeTrainingError(
            f"scale = {values.tolist()} is not positive and finite; check that the activations are not all zero."
        )
    return values


def column_scale(scale: Float[Tensor, " source"], widths: Sequence[int]) -> Float[Tensor, " d_all"]:
    """The scale of each column of the fused weights; 1 for all columns where no scale was set (NaN)."""
    if bool(torch.isnan(scale).any()):
        scale = torch.ones_like(scale)
    return scale.repeat_interleave(torch.tensor(widths, device=scale.device))


_DRAWN_ROWS = 4096
"""Rows that are drawn together. Blocks of 16 numbers or more, in multiples of 16, continue one sequence of torch.randn."""


def common(rows: slice, block: slice) -> slice:
    """Where the rows that also lie in ``block`` are among ``rows``."""
    first, last = (min(max(end, rows.start), rows.stop) - rows.start for end in (block.start, block.stop))
    return slice(first, last)


def _directions(d_sae: int, width: int, generator: torch.Generator, rows: slice) -> Float[Tensor, "latent width"]:
    """Some rows of ``torch.randn(d_sae, width)``, bit by bit, without the memory of the others."""
    found = torch.empty(rows.stop - rows.start, width)
    starts = list(range(0, d_sae, _DRAWN_ROWS))
    if len(starts) > 1 and d_sae - starts[-1] < 16:
        starts.pop()
    for first, last in pairwise((*starts, d_sae)):
        drawn = torch.randn(last - first, width, generator=generator)
        found[common(rows, slice(first, last))] = drawn[common(slice(first, last), rows)]
    return found


def initial_decoder(config: CrosscoderConfig, rows: slice | None = None) -> Float[Tensor, "latent d_all"]:
    """Random directions of norm ``decoder_init_norm`` per source; the models share them with ``shared_init``.

    Directions of different sites are independent. Latents designated as shared always have one direction in all models.
    With ``reads = "difference"``, the decoders of the first model are 0.

    Args:
        config: Shape and variant.
        rows: The latents to return; None for all. They do not depend on which others are returned.
    """
    rows = slice(0, config.d_sae) if rows is None else rows
    generator = torch.Generator().manual_seed(config.seed)
    norm = config.decoder_init_norm
    if norm is None:
        norm = 0.08 if config.variant == "l1" else len(config.reconstructed) ** -0.5
    # Sources are drawn model by model: models that share their directions need one draw per site.
    of_difference = config.reads == "difference"
    n_draws = config.n_sites if (config.shared_init or of_difference) and config.same_width else config.n_sources
    parts = []
    for width in config.widths[:n_draws]:
        direction = _directions(config.d_sae, width, generator, rows)
        parts.append(norm * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True))
    if of_difference:
        parts = [torch.zeros_like(part) for part in parts] + parts
    elif n_draws < config.n_sources:
        parts = parts * config.n_models
    decoder = torch.cat(parts, dim=1)
    if config.n_shared:
        shared = common(rows, config.shared_rows)
        decoder[shared] = decoder[shared, : config.d_all // config.n_models].repeat(1, config.n_models)
    mask = dedicated_mask(config, rows)
    return decoder if mask is None else decoder * mask


def second_less_first(x: Float[Tensor, "batch d_all"]) -> Float[Tensor, "batch d_all"]:
    """0 in place of the first model's activations, and the difference in place of the second's."""
    first, second = x.chunk(2, dim=1)
    return torch.cat([torch.zeros_like(first), second - first], dim=1)


def initial_weights(
    config: CrosscoderConfig, rows: slice | None = None
) -> tuple[Float[Tensor, "latent d_all"], Float[Tensor, "latent d_all"]]:
    """Encoders and decoders. They are equal, but with ``reads = "difference"`` the encoders of the models are opposite."""
    decoder = initial_decoder(config, rows)
    if config.reads == "activations":
        return decoder.clone(), decoder
    own = decoder.chunk(2, dim=1)[1]
    return torch.cat([-own, own], dim=1), decoder


def dedicated_mask(config: CrosscoderConfig, rows: slice | None = None) -> Float[Tensor, "latent d_all"] | None:
    """0 where a latent is dedicated to another model, and 1 elsewhere; None if no latent is dedicated to a model."""
    if not sum(config.n_dedicated):
        return None
    rows = slice(0, config.d_sae) if rows is None else rows
    mask = torch.ones(rows.stop - rows.start, config.d_all)
    n_sites, first, column = config.n_sites, 0, 0
    for model, count in enumerate(config.n_dedicated):
        width = sum(config.widths[model * n_sites : (model + 1) * n_sites])
        own = common(rows, slice(first, first + count))
        mask[own] = 0.0
        mask[own, column : column + width] = 1.0
        first, column = first + count, column + width
    return mask


def permuted(
    config: CrosscoderConfig, tensors: Mapping[str, Tensor], order: Sequence[int]
) -> tuple[CrosscoderConfig, dict[str, Tensor]]:
    """The configuration and the tensors of the dictionary in which place i takes model ``order[i]``.

    Args:
        config: Configuration of the dictionary.
        tensors: Its tensors, as `Crosscoder.tensors` names them.
        order: Every model once.

    Raises:
        SaeTrainingError: ``order`` does not name every model once, or decides the sign of the difference that is read.
    """
    config.require_activations("permuted")
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
    if config.norm_limits:
        changed = changed.replace(norm_limits=tuple(config.norm_limits[source] for source in sources))
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
