"""FVE, L0 and dead share of several dictionaries on the same held-out rows, model by model."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.result import Reconstruction
from mechprobe.dictionary.readout import Readout
from mechprobe.errors import StoreError
from mechprobe.types import Site
from sae_training import Crosscoder, ReconstructionSums, SingleSae, VarianceSums

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps raw rows of all models, side by side, to features ``[batch d_sae]`` and the reconstruction of one model."""

_BATCH_ROWS = 4096


def held_out_rows(store: ActivationStore, site: Site, crosscoder: Crosscoder) -> Iterator[Float[Tensor, "batch d_all"]]:
    """Held-out rows of all models, side by side and raw, on the crosscoder's device."""
    for batch in store.batches(_BATCH_ROWS, 0, site=site, split="held_out", epochs=1):
        yield crosscoder.flatten(batch.to(crosscoder.device))


def by_crosscoder(crosscoder: Crosscoder, model: str) -> Reconstruct:
    """The crosscoder as it was trained: one set of feature activations for all models."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = crosscoder.encode(x)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return reconstruct


def by_slice(crosscoder: Crosscoder, model: str, readout: Readout) -> Reconstruct:
    """The crosscoder as a dictionary of one model, under that model's read-out (models of one width)."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        stacked = x.reshape(len(x), crosscoder.n_models, -1)
        feature_acts = readout.feature_acts(crosscoder, stacked, model)
        return feature_acts, crosscoder.decode_model(feature_acts, model)

    return reconstruct


def by_sae(sae: SingleSae, columns: slice) -> Reconstruct:
    """The SAE of the model whose residuals are in ``columns``."""

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        feature_acts = sae.encode(x[:, columns])
        return feature_acts, sae.decode(feature_acts)

    return reconstruct


@torch.no_grad()
def compare(
    batches: Iterable[Tensor], columns: Mapping[str, slice], reconstructions: Mapping[tuple[str, str], Reconstruct]
) -> dict[tuple[str, str], Reconstruction]:
    """Reconstruct the same rows by every dictionary, with sums in float64.

    Args:
        batches: Raw residuals of all models, side by side, ``[batch d_all]``.
        columns: The columns of each model.
        reconstructions: Dictionaries by (model, label).

    Raises:
        StoreError: There are no rows.
    """
    sums = {key: ReconstructionSums() for key in reconstructions}
    variance: VarianceSums | None = None
    for x in batches:
        # One sum per column, so that the columns of any model can be added up.
        variance = variance or VarianceSums([1] * x.shape[1])
        exact = x.double()
        variance.update(exact)
        for key, reconstruct in reconstructions.items():
            feature_acts, x_hat = reconstruct(x)
            sums[key].update(feature_acts, exact[:, columns[key[0]]] - x_hat)
    if variance is None or variance.n_tokens == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    by_column = variance.compute()
    return {
        key: Reconstruction(
            fve=float(found.fve(by_column[columns[key[0]]].sum())),
            l0=found.l0,
            dead_frac=found.dead_frac,
            n_rows=found.n_tokens,
        )
        for key, found in sums.items()
    }
