"""SAEs of several models side by side, as one crosscoder in which every feature belongs to one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.importing.published import build
from sae_training.importing.single_sae import SingleSae


def block_crosscoder(saes: Mapping[str, SingleSae]) -> Crosscoder:
    """A block-diagonal crosscoder: model m's features come first to last from its own SAE, and read and write m alone.

    Features, reconstructions and edits are exactly those of the SAEs (up to the rounding of the weights, and but for
    features whose decoder is 0, which are never active here), so that per-model SAEs can stand where a crosscoder does. It is *not* one dictionary: no feature is shared, MAS is 1 for the
    owner by construction, and its `d_sae` and L0 are sums over the models.

    A threshold t_k on h_k is one on the score h_k ||W_dec[k]||. Where t_k ||W_dec[k]|| is one number c_m per SAE, as
    sae-lens' BatchTopK leaves it, s_m = c_m makes one threshold of 1 for all (ours); otherwise every feature keeps its own.

    Args:
        saes: by model, in the order of the model axis; at least two.

    Raises:
        SaeTrainingError: fewer than two, or topk SAEs (whose k counts within one SAE), or no variant can hold the
            thresholds.
    """
    if len(saes) < 2:
        raise SaeTrainingError(f"block_crosscoder takes SAEs of at least two models, not {len(saes)}; give more.")
    for name, sae in saes.items():
        if sae.k is not None:
            raise SaeTrainingError(
                f"the SAE of {name} keeps its {sae.k} highest features, which one crosscoder cannot do for each model by "
                "itself; take SAEs with a threshold (jumprelu, batchtopk) or ReLU."
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
    """Divisor of each model, and the threshold on our score: none, one, or one per feature."""
    if not any(bool((cut > 0).any()) for cut in cuts):
        return [1.0] * len(cuts), None
    # A feature whose decoder is 0 writes nothing and has score 0 whatever the threshold.
    live = [cut[norm > 0] for cut, norm in zip(cuts, norms, strict=True)]
    if all(len(c) and bool((c > 0).all()) and bool(c.max() - c.min() <= 1e-6 * c.max()) for c in live):
        return [float(values.mean()) for values in live], 1.0
    return [1.0] * len(cuts), torch.cat(cuts)
