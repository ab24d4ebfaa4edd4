"""SAEs of several models side by side, as one crosscoder whose latents each belong to one model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.importing.published import build
from sae_training.importing.single_sae import SingleSae


def block_crosscoder(saes: Mapping[str, SingleSae]) -> Crosscoder:
    """A block-diagonal crosscoder: the latents of model m are those of its SAE, and read and write only m.

    Latents, reconstructions and edits equal those of the SAEs, up to the rounding of the weights, so per-model SAEs can
    be used in place of a crosscoder. The exception are latents whose decoder is 0, which are never active here. The
    result is *not* one dictionary: no latent is shared, the MAS of the owner is 1 by construction, and `d_sae` and L0
    are sums over the models.

    A threshold t_k on h_k is a threshold t_k ||W_dec[k]|| on the score h_k ||W_dec[k]||. If it is one number c_m for
    all latents of each SAE, as for the BatchTopK of sae-lens, the scales s_m = c_m give one threshold of 1 for all
    latents (own derivation). Otherwise each latent has its own threshold.

    Args:
        saes: SAEs by model, in the order of the model axis; at least two.

    Raises:
        SaeTrainingError: There are fewer than two SAEs, or a topk SAE, whose k counts latents within one model.
    """
    if len(saes) < 2:
        raise SaeTrainingError(f"block_crosscoder needs SAEs of at least two models, not {len(saes)}; give more.")
    for name, sae in saes.items():
        if sae.k is not None:
            raise SaeTrainingError(
                f"the SAE of {name} keeps its {sae.k} highest latents, which a crosscoder cannot do for each model "
                "separately; use SAEs with a threshold (jumprelu, batchtopk) or ReLU."
            )
    own = [sae.to(device="cpu", dtype=torch.float64) for sae in saes.values()]
    norms = [torch.linalg.vector_norm(sae.W_dec, dim=1) for sae in own]
    cuts = [sae.threshold.clamp(min=0) * norm for sae, norm in zip(own, norms, strict=True)]
    scale, cut = _scale_and_cut(cuts, norms)
    dtype = torch.float64 if any(sae.W_enc.dtype == torch.float64 for sae in saes.values()) else torch.float32
    rounded = torch.tensor(scale, dtype=torch.float64).to(dtype)
    s = rounded.double().tolist()
    weights = {
        "W_enc": torch.block_diag(*(sae.W_enc * value for sae, value in zip(own, s, strict=True))),
        "W_dec": torch.block_diag(*(sae.W_dec / value for sae, value in zip(own, s, strict=True))),
        "b_enc": torch.cat([sae.b_enc for sae in own]),
        "b_dec": torch.cat([sae.b_dec / value for sae, value in zip(own, s, strict=True)]),
        "scale": rounded,
    }
    widths = tuple(sae.d_model for sae in own)
    shape: dict[str, Any] = {
        "n_models": len(own),
        "d_model": widths[0] if len(set(widths)) == 1 else widths,
        "d_sae": sum(sae.d_sae for sae in own),
        "n_dedicated": tuple(sae.d_sae for sae in own),
        "model_names": tuple(saes),
    }
    return build(weights, shape, cut=cut)


def _scale_and_cut(cuts: list[Tensor], norms: list[Tensor]) -> tuple[list[float], Tensor | float | None]:
    """Scale of each model, and the threshold on the score: None, one number, or one per latent."""
    if not any(bool((cut > 0).any()) for cut in cuts):
        return [1.0] * len(cuts), None
    # A latent whose decoder is 0 has score 0, whatever its threshold.
    live = [cut[norm > 0] for cut, norm in zip(cuts, norms, strict=True)]
    if all(len(c) and bool((c > 0).all()) and bool(c.max() - c.min() <= 1e-6 * c.max()) for c in live):
        return [float(values.mean()) for values in live], 1.0
    return [1.0] * len(cuts), torch.cat(cuts)
