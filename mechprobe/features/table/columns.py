"""The columns of the feature table."""

from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray

from mechprobe.dictionary.readout import model_scale
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table import classes as feature_classes
from mechprobe.features.table.collect import scaled_norms
from mechprobe.features.table.norms import decoder_cosine, decoder_shift, mas, nrn
from mechprobe.features.table.scaling import LatentScaling, latent_scaling
from mechprobe.features.table.sums import FeatureSums
from sae_training import Crosscoder


def build_frame(crosscoder: Crosscoder, sums: FeatureSums, config: FeaturesConfig) -> pd.DataFrame:
    """The table as a data frame, one row per feature. Dead features have NaN where a value needs activations.

    Columns, with m and o any models and t a tuned one:

    - ``feature``, ``class``, ``class_by_norm``, ``dead``;
    - ``density_m``, ``mean_m``, ``mean_active_m``, ``max_m`` of the model's own read-out, and the same of ``joint``;
    - ``correlation_m_o`` of two models' read-outs over rows;
    - ``mas_m``, ``nrn_t``, and decoder norms ``norm_l1_m``, ``norm_l2_m`` in the model's own units;
    - ``shift_t``, the length of the decoder's change from base, and ``cosine_m_o`` of the decoders;
    - latent scaling: ``beta_error_m_o`` and ``beta_reconstruction_m_o`` with m the owner, and ``nu_error_t`` and
      ``nu_reconstruction_t`` of base with t the owner.
    """
    names = list(crosscoder.model_names)
    base = names.index(config.base)
    dead = (sums.active[0] / sums.n_rows).cpu().numpy() <= config.thresholds.dead_density
    scaling, scaled = latent_scaling(crosscoder, sums), scaled_norms(crosscoder)
    by_norm = feature_classes.classes_by_norm(names, scaled, dead, config.thresholds.absent_below)
    agrees = feature_classes.confirmed(scaled, scaling, config.thresholds)
    columns: dict[str, Any] = {
        "feature": np.arange(crosscoder.d_sae),
        "class": feature_classes.classes(by_norm, agrees),
        "class_by_norm": by_norm,
        "dead": dead,
        **_activation_columns(names, sums),
    }
    geometry = {**_decoder_columns(crosscoder, names, base), **_scaling_columns(names, base, scaling)}
    columns |= {name: np.where(dead, np.nan, values) for name, values in geometry.items()}
    return pd.DataFrame(columns)


def _activation_columns(names: list[str], sums: FeatureSums) -> dict[str, ndarray]:
    n = sums.n_rows
    active, total, largest = (part.cpu().numpy() for part in (sums.active, sums.total, sums.largest))
    columns = {}
    for row, name in enumerate(["joint", *names]):
        columns |= {
            f"density_{name}": active[row] / n,
            f"mean_{name}": total[row] / n,
            f"mean_active_{name}": total[row] / np.where(active[row] > 0, active[row], np.nan),
            f"max_{name}": largest[row],
        }
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            columns[f"correlation_{names[first]}_{names[second]}"] = _correlation(sums, first, second)
    return columns


def _correlation(sums: FeatureSums, first: int, second: int) -> ndarray:
    """Pearson correlation over rows of two models' own activations; NaN where one is constant."""
    n = sums.n_rows
    mean = sums.total[1:] / n
    cov = sums.cross / n - mean.unsqueeze(0) * mean.unsqueeze(1)
    var = cov.diagonal(dim1=0, dim2=1).T.clamp(min=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (cov[first, second] / (var[first] * var[second]).sqrt()).cpu().numpy()
    return np.where(np.isfinite(value), np.clip(value, -1, 1), np.nan)


def _decoder_columns(crosscoder: Crosscoder, names: list[str], base: int) -> dict[str, ndarray]:
    norms = {p: crosscoder.decoder_norm(p).double().cpu().numpy() for p in (1, 2)}
    decoder = crosscoder.W_dec.detach().double().cpu().numpy()
    scale = model_scale(crosscoder).double().cpu().numpy()
    attribution, cosine = mas(norms[1]), decoder_cosine(decoder)
    columns = {}
    for index, name in enumerate(names):
        columns |= {
            f"mas_{name}": attribution[:, index],
            f"norm_l1_{name}": norms[1][:, index],
            f"norm_l2_{name}": norms[2][:, index],
        }
        if index != base:
            columns[f"nrn_{name}"] = nrn(norms[1], tuned=index, base=base)
            columns[f"shift_{name}"] = decoder_shift(decoder, scale, tuned=index, base=base)
        for other in range(index + 1, len(names)):
            columns[f"cosine_{name}_{names[other]}"] = cosine[:, index, other]
    return columns


def _scaling_columns(names: list[str], base: int, scaling: LatentScaling) -> dict[str, ndarray]:
    columns = {}
    for owner, name in enumerate(names):
        if owner != base:
            columns[f"nu_error_{name}"] = scaling.nu_error(owner, base)
            columns[f"nu_reconstruction_{name}"] = scaling.nu_reconstruction(owner, base)
        for model, other in enumerate(names):
            columns[f"beta_error_{name}_{other}"] = scaling.beta_error[owner, model]
            columns[f"beta_reconstruction_{name}_{other}"] = scaling.beta_reconstruction[owner, model]
    return columns
