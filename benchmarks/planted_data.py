"""Activations of three models with planted features, the data of every training benchmark."""

from __future__ import annotations

from torch import Tensor

from benchmarks.contestants import N_MODELS, Setting
from sae_training import PlantedConfig, PlantedFeatures

SEED = 0
HELD_OUT_SEED = 1


def planted_batches(setting: Setting, n_batches: int, *, held_out: bool = False) -> list[Tensor]:
    """Batches ``[batch model d_model]``, each model's mean norm about sqrt(d_model), on the setting's device.

    On average k planted features are active on a token, as many as the dictionary may use. An eighth of the features belongs to
    each model alone.
    """
    n_features = 4 * setting.d_model
    truth = PlantedFeatures.make(
        PlantedConfig(
            n_models=N_MODELS,
            d_model=setting.d_model,
            n_shared=n_features - 3 * (n_features // 8),
            n_specific=n_features // 8,
            density=min(0.5, setting.k / n_features),
            noise=0.02,
            seed=SEED,
        )
    )
    scale = truth.tokens(1024, seed=-1).norm(dim=2).mean(dim=0) / setting.d_model**0.5
    batches = truth.batches(setting.batch_size, seed=HELD_OUT_SEED if held_out else SEED, n_batches=n_batches)
    return [(batch / scale[:, None]).to(setting.device) for batch in batches]
