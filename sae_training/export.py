"""One model's slice of a crosscoder as a stock sae-lens SAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import reduce
from torch import Tensor

from sae_training.errors import SaeTrainingError

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_training.crosscoder import Crosscoder

Readout = Literal["single", "swap"]


def to_sae(
    crosscoder: Crosscoder, model: str | int, *, readout: Readout = "single", out: str | Path | None = None
) -> SAE[Any]:
    """A sae-lens SAE over one model's raw activations, exactly equal to a read-out of the crosscoder.

    The crosscoder's encoder is joint, so one model's features need a definition. With r the raw activation of model m::

        single:  h = (r / s_m) W_enc[m] + b_enc              the other models' slots are zero
        swap:    h = sum_j (r / s_m) W_enc[j] + b_enc        r, in m's units, stands in every slot (models of one width)
        f_k = h_k where h_k > threshold / n_k and h_k > 0, else 0;   r_hat = s_m (f W_dec[m] + b_dec[m])

    with n_k = sum_m ||W_dec[k, m]||_2. The scales are folded into the weights, the norm into one threshold per
    feature, so the features are those of ``crosscoder.encode`` on the read-out's input and the reconstruction is
    ``crosscoder.decode_model`` of them. A topk crosscoder selects by f_k n_k, which sae-lens can only do with the norm
    folded into the features: its slice gives f_k n_k instead of f_k, and the same reconstruction. A feature whose
    decoders are all zero has score 0 and is never active, in the slice as in the crosscoder.

    The SAE is in float32, or in float64 for a crosscoder in float64.

    Args:
        crosscoder: a trained crosscoder.
        model: name or number of the model.
        readout: what stands in the other models' slots.
        out: also save there, for ``sae_lens.SAE.load_from_disk``.

    Raises:
        SaeTrainingError: there is no such model or read-out, or ``swap`` is asked of models of different widths.
    """
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    index = crosscoder.model_index(model)
    tensors = _folded(crosscoder, index, readout)
    d_in, d_sae = tensors["W_enc"].shape
    dtype = torch.float64 if crosscoder.decoder.dtype == torch.float64 else torch.float32
    name = "float64" if dtype == torch.float64 else "float32"
    shape = {"d_in": d_in, "d_sae": d_sae, "dtype": name, "device": "cpu", "apply_b_dec_to_input": False}
    norm = crosscoder.feature_norm().detach().double().cpu()
    if crosscoder.config.variant == "topk":
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norm, tensors["b_enc"] * norm
        tensors["W_dec"] = torch.where(norm[:, None] > 0, tensors["W_dec"] / norm[:, None], 0.0)
        sae: SAE[Any] = TopKSAE(TopKSAEConfig(**shape, k=crosscoder.config.k, rescale_acts_by_decoder_norm=False))
    else:
        cut = crosscoder.threshold.double().cpu().expand(d_sae)
        tensors["threshold"] = torch.where(norm > 0, cut / norm, float("inf"))
        sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    sae.load_state_dict({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()})
    sae.cfg.metadata.crosscoder_fingerprint = crosscoder.fingerprint
    sae.cfg.metadata.crosscoder_model = crosscoder.model_names[index]
    sae.cfg.metadata.crosscoder_readout = readout
    if out is not None:
        sae.save_model(Path(out))
    return sae


@torch.no_grad()
def _folded(crosscoder: Crosscoder, model: int, readout: Readout) -> dict[str, Tensor]:
    """Weights over raw activations, in float64."""
    scale = crosscoder.column_scale().double().cpu()
    columns = crosscoder.columns(model)
    encoder = crosscoder.encoder.detach().double().cpu()
    if readout == "single":
        encoder = encoder[:, columns]
    elif readout == "swap" and crosscoder.config.same_width:
        encoder = reduce(encoder, "d_sae (model d) -> d_sae d", "sum", model=crosscoder.n_models)
    else:
        raise SaeTrainingError(
            f"to_sae: readout {readout!r} is not possible for models of widths {crosscoder.config.widths}; "
            "take 'single', or 'swap' where all models have one width."
        )
    return {
        "W_enc": (encoder / scale[columns]).T,
        "b_enc": crosscoder.b_enc.detach().double().cpu(),
        "W_dec": crosscoder.decoder.detach().double().cpu()[:, columns] * scale[columns],
        "b_dec": crosscoder.b_dec_flat.detach().double().cpu()[columns] * scale[columns],
    }
