"""Import of sae-lens folders (``cfg.json`` and ``sae_weights.safetensors``) as a `SingleSae`, without sae-lens itself.

Supported are inference SAEs (standard, jumprelu, topk) and checkpoints of training SAEs (the same, batchtopk and
matryoshka_batchtopk). The weights absorb what sae-lens does at run time: b_enc absorbs ``apply_b_dec_to_input``, and
encoder and decoder absorb ``rescale_acts_by_decoder_norm``. Source of the formula: saes/*.py of sae-lens 6.54.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.importing.files import PublishedFile, read_json, read_published_file
from sae_training.importing.single_sae import SingleSae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RELU, THRESHOLD, TOPK = ("standard",), ("jumprelu", "batchtopk", "matryoshka_batchtopk"), ("topk",)
_LEAST_NORM = 1e-8
"""Lower bound of the decoder norm in sae-lens."""


def import_sae(folder: Path | str) -> SingleSae:
    """Import an SAE saved by sae-lens (``SAE.save_model``, ``save_inference_model``, or a training checkpoint).

    Raises:
        SaeTrainingError: The folder does not hold an SAE, its architecture is not supported, or its latents are not a
            fixed function of raw activations (as with layer_norm).
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise SaeTrainingError(
            f"{folder} does not hold an SAE of sae-lens ({CONFIG} and {WEIGHTS}); give the folder with both."
        )
    settings = read_json(folder / CONFIG)
    file = read_published_file(folder / WEIGHTS)
    architecture = _architecture(folder, settings)
    _refuse_unfolded(folder, settings, file)
    encoder = file.tensor("W_enc", (None, None))
    d_model, d_sae = encoder.shape
    decoder = file.tensor("W_dec", (d_sae, d_model))
    b_enc, b_dec = file.tensor("b_enc", (d_sae,)), file.tensor("b_dec", (d_model,))
    if settings.get("apply_b_dec_to_input", True):
        b_enc = b_enc - b_dec @ encoder
    if settings.get("rescale_acts_by_decoder_norm", False) and architecture not in RELU:
        norm = torch.linalg.vector_norm(decoder, dim=1)
        norm = norm.clamp(min=_LEAST_NORM) if architecture in THRESHOLD else norm
        encoder, b_enc = encoder * norm, b_enc * norm
        decoder = torch.where(norm[:, None] > 0, decoder / norm[:, None], 0.0)
    threshold = _threshold(file, architecture, d_sae)
    k = _k(folder, settings, d_sae) if architecture in TOPK else None
    tensors = (tensor.to(file.dtype) for tensor in (encoder, decoder, b_enc, b_dec, threshold))
    return SingleSae(*tensors, k=k, source=folder, metadata=_metadata(settings, architecture))


def _architecture(folder: Path, settings: dict[str, Any]) -> str:
    name = settings.get("architecture", "standard")
    activation = settings.get("activation_fn", settings.get("activation_fn_str", "relu"))
    if name == "standard" and activation == "topk":
        name = "topk"  # the notation of sae-lens before 6.0
    if name not in RELU + THRESHOLD + TOPK or (name == "standard" and activation != "relu"):
        shown = name if name != "standard" else f"standard with {activation}"
        raise SaeTrainingError(
            f"{folder}: architecture {shown!r} cannot be imported; {', '.join(RELU + THRESHOLD + TOPK)} can."
        )
    return name


def _refuse_unfolded(folder: Path, settings: dict[str, Any], file: PublishedFile) -> None:
    normalize = settings.get("normalize_activations") or "none"
    if normalize is True or normalize in ("expected_average_only_in", "covariance_whitening"):
        raise SaeTrainingError(
            f"{folder}: normalize_activations {normalize!r} is not yet folded into the weights, as sae-lens does at the end "
            "of training; let sae-lens finish or fold it, and save again."
        )
    if normalize != "none":
        raise SaeTrainingError(
            f"{folder}: normalize_activations {normalize!r} scales each token separately, so the latents do not determine "
            "the reconstruction; it cannot be imported."
        )
    if settings.get("reshape_activations", "none") != "none":
        raise SaeTrainingError(
            f"{folder}: an SAE of attention heads (hook_z) does not read a residual stream; it cannot be imported."
        )
    factor = file.tensors.get("scaling_factor", file.tensors.get("finetuning_scaling_factor"))
    if factor is not None and not torch.allclose(factor.float(), torch.ones_like(factor).float()):
        raise SaeTrainingError(f"{folder}: a fine-tuning scaling factor other than 1 cannot be imported.")


def _threshold(file: PublishedFile, architecture: str, d_sae: int) -> Tensor:
    if architecture not in THRESHOLD:
        return torch.zeros(d_sae, dtype=torch.float64)
    if architecture == "jumprelu":
        return file.tensor("threshold", (d_sae,))
    return file.tensor("topk_threshold", ()).expand(d_sae)


def _k(folder: Path, settings: dict[str, Any], d_sae: int) -> int:
    k = settings.get("k", settings.get("activation_fn_kwargs", {}).get("k"))
    if not isinstance(k, int) or not 1 <= k <= d_sae:
        raise SaeTrainingError(
            f"{folder / CONFIG}: k = {k!r} is not a number from 1 to {d_sae}; download the file again."
        )
    return k


def _metadata(settings: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Model, hook and architecture, which sae-lens before 6.0 kept at the top level."""
    nested = settings.get("metadata")
    known = nested if isinstance(nested, dict) else settings
    found = {name: known.get(name) for name in ("model_name", "hook_name", "dataset_path")}
    return {"architecture": architecture, **{name: value for name, value in found.items() if value is not None}}
