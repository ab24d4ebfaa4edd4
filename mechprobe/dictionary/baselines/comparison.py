"""Reconstruction and sparsity of several dictionaries on the same held-out rows, model by model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import StoreError
from sae_training import Crosscoder, ReconstructionSums, SingleSae, VarianceSums

Reader = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the rows of all models, side by side and raw, to features ``[batch d_sae]`` and one model's reconstruction."""


@dataclass(frozen=True)
class Reconstruction:
    """One dictionary on one model.

    Attributes:
        fve: 1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², pooled over rows, about the mean.
        l0: Mean number of features above zero.
        dead_share: Share of features above zero on no row.
        n_rows: Held-out rows read.
    """

    fve: float
    l0: float
    dead_share: float
    n_rows: int


def joint_reader(crosscoder: Crosscoder, model: str) -> Reader:
    """The crosscoder as it was trained: features of all models together."""

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = crosscoder.encode(x)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return read


def slice_reader(crosscoder: Crosscoder, model: str, readout: Readout) -> Reader:
    """The crosscoder as a dictionary of one model, with that model's read-out (models of one width)."""

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        stacked = x.reshape(len(x), crosscoder.n_models, -1)
        feature_acts = readout.feature_acts(crosscoder, stacked, model)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return read


def sae_reader(sae: SingleSae, columns: slice) -> Reader:
    """An SAE of one model, whose activations stand in ``columns``."""

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = sae.encode(x[:, columns])
        return feature_acts, sae.decode(feature_acts)

    return read


@torch.no_grad()
def compare(
    batches: Iterable[Tensor], columns: Mapping[str, slice], readers: Mapping[tuple[str, str], Reader]
) -> dict[tuple[str, str], Reconstruction]:
    """Run every reader over the same rows; sums in float64.

    Args:
        batches: Raw activations of all models, side by side, ``[batch d_all]``.
        columns: Where each model's activations stand.
        readers: By (model, label).

    Raises:
        StoreError: There is no row.
    """
    sums = {key: ReconstructionSums() for key in readers}
    variance: VarianceSums | None = None
    for x in batches:
        # Column by column: the columns of any model can then be summed.
        variance = variance or VarianceSums([1] * x.shape[1])
        exact = x.double()
        variance.update(exact)
        for key, reader in readers.items():
            feature_acts, x_hat = reader(x)
            sums[key].update(feature_acts, exact[:, columns[key[0]]] - x_hat)
    if variance is None or variance.n_tokens == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    by_column = variance.compute()
    return {
        key: Reconstruction(
            fve=float(found.fve(by_column[columns[key[0]]].sum())),
            l0=found.l0,
            dead_share=found.dead_frac,
            n_rows=found.n_tokens,
        )
        for key, found in sums.items()
    }
