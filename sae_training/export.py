"""One model's slice of a crosscoder as a stock sae-lens SAE."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import reduce
from torch import Tensor

from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError
from sae_training.storage import fingerprint
from sae_training.weights import column_scale, sum_of_norms

if TYPE_CHECKING:
    from sae_lens import SAE

Readout = Literal["single", "swap"]


def require_sae_lens(user: str) -> None:
    """Raise `SaeTrainingError` if sae-lens, which ``user`` needs, cannot be imported."""
    try:
        importlib.import_module("sae_lens")
    except ImportError as error:
        raise SaeTrainingError(
            f"{user} needs the package sae-lens, which cannot be imported ({error}); run `pip install sae-lens`."
        ) from None


def to_sae(config: CrosscoderConfig, tensors: Mapping[str, Tensor], model: int, readout: Readout) -> "SAE[Any]":
    """A sae-lens SAE over one model's raw activations that is equal to a read-out of the crosscoder.

    The encoder reads all models at once, so the latents of one model need a definition. With r the raw activation of
    model m::

        single:  h = (r / s_m) W_enc[m] + b_enc              the slots of the other models are zero
        swap:    h = sum_j (r / s_m) W_enc[j] + b_enc        r, in units of m, fills every slot (models of one width)
        f_k = h_k where h_k > threshold / n_k and h_k > 0, else 0;   r_hat = s_m (f W_dec[m] + b_dec[m])

    with n_k = sum_m ||W_dec[k, m]||_2. The scales are folded into the weights, and the norm into one threshold per
    latent. The latents are then those of `Crosscoder.encode` on the input of the read-out, and the reconstruction is
    `Crosscoder.decode_model` of them. A topk crosscoder selects by f_k n_k, which sae-lens can do only with the norm
    folded into the latents: its slice gives f_k n_k in place of f_k, and the same reconstruction. A latent whose
    decoders are all zero has score 0 and is never active, in the slice as in the crosscoder.

    The SAE is in float32, or in float64 for a crosscoder in float64.

    Args:
        config: Configuration of a dictionary of one site.
        tensors: Its tensors on the CPU, as `Crosscoder.tensors` names them.
        model: Place of the model.
        readout: What fills the slots of the other models.

    Raises:
        SaeTrainingError: ``readout`` is unknown, or is ``swap`` for models of different widths, the dictionary reads a
            difference, or sae-lens is not installed.
    """
    config.require_activations("to_sae")
    require_sae_lens("The export of a slice")
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    folded = _folded(config, tensors, model, readout)
    dtype = torch.float64 if tensors["W_dec"].dtype == torch.float64 else torch.float32
    shape: dict[str, Any] = {
        "d_in": folded["W_enc"].shape[0],
        "d_sae": config.d_sae,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
    }
    norm = sum_of_norms(tensors["W_dec"], config.widths).double()
    if config.variant == "topk":
        folded["W_enc"], folded["b_enc"] = folded["W_enc"] * norm, folded["b_enc"] * norm
        folded["W_dec"] = torch.where(norm[:, None] > 0, folded["W_dec"] / norm[:, None], 0.0)
        sae: SAE[Any] = TopKSAE(TopKSAEConfig(**shape, k=config.k, rescale_acts_by_decoder_norm=False))
    else:
        cut = tensors["threshold"].double().expand(config.d_sae)
        folded["threshold"] = torch.where(norm > 0, cut / norm, float("inf"))
        sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    sae.load_state_dict({name: tensor.to(dtype).contiguous() for name, tensor in folded.items()})
    sae.cfg.metadata.crosscoder_fingerprint = fingerprint(config, tensors)
    sae.cfg.metadata.crosscoder_model = config.model_names[model]
    sae.cfg.metadata.crosscoder_readout = readout
    return sae


def _folded(config: CrosscoderConfig, tensors: Mapping[str, Tensor], model: int, readout: Readout) -> dict[str, Tensor]:
    """Weights that take raw activations, in float64."""
    columns = config.columns(model)
    scale = column_scale(tensors["scale"], config.widths).double()[columns, None]
    encoder = tensors["W_enc"].double()
    if readout == "single":
        encoder = encoder[columns]
    elif readout == "swap" and config.same_width:
        encoder = reduce(encoder, "(model d) d_sae -> d d_sae", "sum", model=config.n_models)
    else:
        raise SaeTrainingError(
            f"to_sae: readout {readout!r} is not possible for models of widths {config.widths}; "
            "choose 'single', or 'swap' if all models have one width."
        )
    return {
        "W_enc": encoder / scale,
        "b_enc": tensors["b_enc"].double(),
        "W_dec": tensors["W_dec"].double()[:, columns] * scale.T,
        "b_dec": tensors["b_dec"].double()[columns] * scale[:, 0],
    }
