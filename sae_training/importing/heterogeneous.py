"""understanding-opd-crosscoders: HeterogeneousCrossCoder and its BatchTopK class, for models of different widths.

State dict: ``encoder.projections.<m>.weight`` [F, d_m], ``encoder.bias`` [F], ``decoder.projections.<m>.weight`` [d_m,
F] and ``.bias`` [d_m], ``normalizer.mean_<m>`` and ``std_<m>`` [d_m] (NaN if not normalized), ``scale_<m>``,
``activation_dims_tensor`` [M] and ``code_normalization_id``. The BatchTopK class adds ``k`` and ``threshold``. Files
are models, or training checkpoints with ``model_state_dict``. Source of the formula: dictionary.py at commit 4a61088.
"""

import torch

from sae_training.errors import SaeTrainingError
from sae_training.importing.crosscoder_learning import BACK_EPSILON, selection_norm
from sae_training.importing.files import PublishedFile
from sae_training.importing.published import PublishedCrosscoder

NAME = "opd"


def matches(file: PublishedFile) -> bool:
    """Whether the file has the tensors of this format."""
    return file.has("encoder.projections.0.weight", "encoder.bias", "decoder.projections.0.weight")


def read(file: PublishedFile) -> PublishedCrosscoder:
    """Read the formula of a HeterogeneousCrossCoder.

    Raises:
        SaeTrainingError: A tensor is missing or has a wrong shape, or a scale is not positive.
    """
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
            raise SaeTrainingError(f"{file.path}: the scales {factor} are not positive; the file is damaged.")
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
