"""understanding-opd-crosscoders: HeterogeneousCrossCoder and its BatchTopK class, models of different widths.

State dict: ``encoder.projections.<m>.weight`` [F, d_m], ``encoder.bias`` [F], ``decoder.projections.<m>.weight`` [d_m, F]
and ``.bias`` [d_m], ``normalizer.mean_<m>``, ``std_<m>`` [d_m] (NaN: none), ``scale_<m>``, ``activation_dims_tensor`` [M],
``code_normalization_id``; the BatchTopK class adds ``k`` and ``threshold``. A model file or a training checkpoint, whose
``model_state_dict`` is taken. Formula: commit 4a61088, dictionary.py.
"""

from __future__ import annotations

import torch

from sae_training.errors import SaeTrainingError
from sae_training.importing.crosscoder_learning import BACK_EPSILON, selection_norm
from sae_training.importing.files import PublishedFile
from sae_training.importing.published import PublishedCrosscoder

NAME = "opd"


def matches(file: PublishedFile) -> bool:
    """Whether the file has this format's tensors."""
    return file.has("encoder.projections.0.weight", "encoder.bias", "decoder.projections.0.weight")


def read(file: PublishedFile) -> PublishedCrosscoder:
    """The formula of a HeterogeneousCrossCoder."""
    n_models = sum(f"encoder.projections.{index}.weight" in file.tensors for index in range(len(file.tensors)))
    (d_sae,) = file.tensor("encoder.bias", (None,)).shape
    encoder = tuple(file.tensor(f"encoder.projections.{m}.weight", (d_sae, None)).T for m in range(n_models))
    widths = [part.shape[0] for part in encoder]
    decoder = tuple(file.tensor(f"decoder.projections.{m}.weight", (widths[m], d_sae)).T for m in range(n_models))
    means = [file.tensors.get(f"normalizer.mean_{m}") for m in range(n_models)]
    normalized = all(mean is not None and not bool(torch.isnan(mean).any()) for mean in means)
    factor = [1.0] * n_models
    shift = tuple(torch.zeros(width).double() for width in widths)
    if normalized:
        factor = [float(file.tensor(f"normalizer.scale_{m}", ())) for m in range(n_models)]
        shift = tuple(file.tensor(f"normalizer.mean_{m}", (widths[m],)) for m in range(n_models))
        if min(factor) <= 0:
            raise SaeTrainingError(f"{file.path}: the scales {factor} are not positive.")
    has_threshold = "threshold" in file.tensors
    return PublishedCrosscoder(
        format=NAME,
        path=file.path,
        encoder=encoder,
        decoder=decoder,
        b_enc=file.tensor("encoder.bias", (d_sae,)),
        b_dec=tuple(file.tensor(f"decoder.projections.{m}.bias", (widths[m],)) for m in range(n_models)),
        shift=shift,
        divisor=tuple(1 / value for value in factor),
        multiplier=tuple(1 / (value + BACK_EPSILON) if normalized else 1.0 for value in factor),
        has_scale=normalized,
        threshold=file.number("threshold"),
        norm=selection_norm(file, decoder) if has_threshold else None,
        k=int(file.number("k") or 0) or None,
        dtype=file.dtype,
    )
