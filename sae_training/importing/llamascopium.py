"""Llamascopium (OpenMOSS Language-Model-SAEs) crosscoders over "heads": hook points or checkpoints.

``sae_weights.safetensors`` (or ``.pt`` with the tensors under ``sae``) and ``config.json``: ``W_E`` [M, d, F], ``b_E``
[M, F] (summed over heads), ``W_D`` [M, F, d], ``b_D`` [M, d] and ``dataset_average_activation_norm.<hook point>``. The
activation function acts on h n_m, where n_m is the decoder norm of one head, so only ``relu`` gives all heads the same
latents. Source of the formula: models/crosscoder.py and sparse_dictionary.py at commit 95281ac.
"""

import torch

from sae_training.errors import SaeTrainingError
from sae_training.importing.files import PublishedFile
from sae_training.importing.published import PublishedCrosscoder

NAME = "llamascopium"


def matches(file: PublishedFile) -> bool:
    """Whether the file has the tensors of this format."""
    return file.has("W_E", "b_E", "W_D", "b_D") and file.tensors["W_E"].ndim == 3


def read(file: PublishedFile) -> PublishedCrosscoder:
    """Read the formula of a Llamascopium crosscoder with ``act_fn = relu``.

    Raises:
        SaeTrainingError: A tensor is missing or has a wrong shape, or the settings cannot be represented exactly.
    """
    encoder = file.tensor("W_E", (None, None, None))
    n_heads, width, d_sae = encoder.shape
    hooks = tuple(str(hook) for hook in file.settings.get("hook_points", ()))
    if len(hooks) != n_heads:
        raise SaeTrainingError(
            f"{file.path} has {n_heads} heads, but its config.json names {len(hooks)} hook_points; put the config.json of "
            "the release beside it."
        )
    act_fn = str(file.settings.get("act_fn", "relu")).lower()
    if act_fn != "relu":
        raise SaeTrainingError(
            f"{file.path}: with act_fn {act_fn!r} a latent can be active in only some heads, but a crosscoder here has one "
            "activation per latent; only relu can be imported."
        )
    divisor = _divisors(file, hooks, width)
    return PublishedCrosscoder(
        format=NAME,
        path=file.path,
        encoder=tuple(encoder),
        decoder=tuple(file.tensor("W_D", (n_heads, d_sae, width))),
        b_enc=file.tensor("b_E", (n_heads, d_sae)).sum(dim=0),
        b_dec=tuple(file.tensor("b_D", (n_heads, width))),
        shift=tuple(torch.zeros(n_heads, width).double()),
        divisor=divisor,
        multiplier=divisor,
        dtype=file.dtype,
        hint=hooks,
    )


def _divisors(file: PublishedFile, hooks: tuple[str, ...], width: int) -> tuple[float, ...]:
    """Average norm of each head over sqrt(d), or 1 if the scale is folded into the weights."""
    mode = file.settings.get("norm_activation")
    if mode == "inference":
        return (1.0,) * len(hooks)
    if mode != "dataset-wise":
        raise SaeTrainingError(
            f"{file.path}: norm_activation {mode!r} scales each token separately, which the latents do not determine; "
            "only 'dataset-wise' and 'inference' can be imported."
        )
    norms = [float(file.tensor(f"dataset_average_activation_norm.{hook}", ())) for hook in hooks]
    if min(norms) <= 0:
        raise SaeTrainingError(
            f"{file.path}: the average activation norms {norms} are not positive; the file is damaged."
        )
    return tuple(norm / width**0.5 for norm in norms)
