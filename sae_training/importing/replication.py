"""neelnanda-io/Crosscoders and ckkissane/crosscoder-model-diff-replication: a ReLU crosscoder.

State dict in ``<version>.pt`` with ``<version>_cfg.json`` (``cc_weights.pt`` with ``cfg.json`` in the release):
``W_enc`` [M, d, F], ``W_dec`` [F, M, d], ``b_enc`` [F], ``b_dec`` [M, d]. Both repositories scale the activations (one
divides, one multiplies) by factors that are not in the files. Source of the formula: utils.py at commit 3adc7eb, and
crosscoder.py and buffer.py at commit e221e8d.
"""

import torch

from sae_training.importing.files import PublishedFile
from sae_training.importing.published import PublishedCrosscoder

NAME = "replication"


def matches(file: PublishedFile) -> bool:
    """Whether the file has the tensors of this format."""
    return file.has("W_enc", "W_dec", "b_enc", "b_dec") and file.tensors["W_enc"].ndim == 3


def read(file: PublishedFile) -> PublishedCrosscoder:
    """Read the formula of the replication's CrossCoder.

    Raises:
        SaeTrainingError: A tensor is missing or has a wrong shape.
    """
    encoder = file.tensor("W_enc", (None, None, None))
    n_models, width, d_sae = encoder.shape
    return PublishedCrosscoder(
        format=NAME,
        path=file.path,
        encoder=tuple(encoder),
        decoder=file.tensor("W_dec", (d_sae, n_models, width)).unbind(dim=1),
        b_enc=file.tensor("b_enc", (d_sae,)),
        b_dec=tuple(file.tensor("b_dec", (n_models, width))),
        shift=tuple(torch.zeros(n_models, width).double()),
        divisor=(1.0,) * n_models,
        multiplier=(1.0,) * n_models,
        has_scale=False,
        needs_scale=True,
        dtype=file.dtype,
    )
