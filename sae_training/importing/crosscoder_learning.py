"""crosscoder_learning (dictionary_learning with crosscoders, science-of-finetuning): CrossCoder, BatchTopKCrossCoder.

State dict: ``encoder.weight`` [M, d, F], ``encoder.bias`` [F], ``decoder.weight`` [M, F, d], ``decoder.bias`` [M, d]
and ``code_normalization_id``; since 2025 also ``activation_mean`` and ``activation_std`` [M, d] (NaN if not normalized)
and ``activation_global_scale`` [M]. The BatchTopK class adds ``k`` and ``threshold``. Files are ``.pt``, or
``model.safetensors`` with ``config.json``. Source of the formula: dictionary.py at commit b2363ed.
"""

import torch
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.importing.files import PublishedFile
from sae_training.importing.published import PublishedCrosscoder
from sae_training.weights import source_norms

NAME = "crosscoder_learning"
CODE_NORMALIZATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
BACK_EPSILON = 1e-8
"""Added by the library to the factor that divides the reconstruction."""


def matches(file: PublishedFile) -> bool:
    """Whether the file has the tensors of this format."""
    return file.has("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias") and (
        file.tensors["encoder.weight"].ndim == 3
    )


def read(file: PublishedFile) -> PublishedCrosscoder:
    """Read the formula of a CrossCoder or BatchTopKCrossCoder.

    Raises:
        SaeTrainingError: A tensor is missing or has a wrong shape, or the formula is not that of a crosscoder here.
    """
    encoder = file.tensor("encoder.weight", (None, None, None))
    n_models, width, d_sae = encoder.shape
    decoder = file.tensor("decoder.weight", (None, d_sae, width))
    if len(decoder) != n_models:
        raise SaeTrainingError(
            f"{file.path} encodes {n_models} activations and decodes {len(decoder)}, but a crosscoder needs equal numbers; "
            "it cannot be imported."
        )
    b_dec = file.tensor("decoder.bias", (n_models, width))
    shift, factor = _normalizer(file, n_models, width)
    has_threshold = "threshold" in file.tensors
    parts = tuple(decoder)
    return PublishedCrosscoder(
        format=NAME,
        path=file.path,
        encoder=tuple(encoder),
        decoder=parts,
        b_enc=file.tensor("encoder.bias", (d_sae,)),
        b_dec=tuple(b_dec),
        shift=tuple(torch.zeros(n_models, width).double() if shift is None else shift),
        divisor=tuple((1 / factor).tolist()),
        multiplier=tuple((1 / factor).tolist() if shift is None else (1 / (factor + BACK_EPSILON)).tolist()),
        has_scale=shift is not None,
        threshold=_threshold(file) if has_threshold else None,
        norm=selection_norm(file, parts) if has_threshold else None,
        k=int(file.number("k") or 0) or None,
        dtype=file.dtype,
    )


def code_normalization(file: PublishedFile) -> str:
    """Name of the decoder norm that weights the selection of latents."""
    number = file.number("code_normalization_id")
    name = CODE_NORMALIZATIONS.get(int(number), "") if number is not None else file.settings.get("code_normalization")
    if name is None:
        return "CROSSCODER"  # the library's only norm before it had this setting
    if str(name).upper() not in CODE_NORMALIZATIONS.values():
        raise SaeTrainingError(
            f"{file.path}: code_normalization {number if number is not None else name!r} is unknown; "
            f"known are {', '.join(CODE_NORMALIZATIONS.values())}."
        )
    return str(name).upper()


def selection_norm(file: PublishedFile, decoder: tuple[Tensor, ...]) -> Tensor:
    """The weights norm_k of the code normalization, ``[d_sae]``."""
    norms = source_norms(decoder)
    together, summed = norms.square().sum(dim=0).sqrt(), norms.sum(dim=0)
    match code_normalization(file):
        case "CROSSCODER":
            return summed
        case "SAE":
            return together
        case "NONE":
            return torch.ones_like(summed)
        case "MIXED":
            sae, cc = (file.settings.get(f"code_normalization_alpha_{name}") for name in ("sae", "cc"))
            if not isinstance(sae, int | float) or not isinstance(cc, int | float):
                raise SaeTrainingError(
                    f"{file.path}: code normalization MIXED needs code_normalization_alpha_sae and ..._cc, which are only in "
                    "config.json; put the config.json of the release beside the file."
                )
            return sae * together + cc * summed
        case _:
            raise SaeTrainingError(
                f"{file.path}: with code normalization DECOUPLED a latent can be active in only some models, but a "
                "crosscoder here has one activation per latent; this file cannot be imported exactly."
            )


def _threshold(file: PublishedFile) -> float:
    if file.tensors["threshold"].ndim:
        selection_norm(file, tuple(file.tensors["decoder.weight"].double()))  # raises the error about DECOUPLED
    return float(file.tensor("threshold", ()))


def _normalizer(file: PublishedFile, n_models: int, width: int) -> tuple[Tensor | None, Tensor]:
    """Mean [M, d] and factor [M] of (x - mean) * factor; None and ones if the file has no statistics."""
    ones = torch.ones(n_models).double()
    names = ("activation_mean", "activation_std")
    if not file.has(*names) or any(bool(torch.isnan(file.tensors[name]).any()) for name in names):
        return None, ones
    factor = file.tensor("activation_global_scale", (n_models,))
    if not bool((factor > 0).all()):
        raise SaeTrainingError(
            f"{file.path}: activation_global_scale {factor.tolist()} is not positive; the file is damaged."
        )
    return file.tensor("activation_mean", (n_models, width)), factor
