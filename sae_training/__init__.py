"""Dictionary learning over the activations of several models at once: tensors in, dictionary out.

Names are imported on first use, so that ``import sae_training`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_training.baseline import SaeBaselineConfig, train_sae_baseline
    from sae_training.config import CrosscoderConfig, TrainConfig
    from sae_training.crosscoder import Crosscoder
    from sae_training.errors import SaeTrainingError
    from sae_training.evaluation import Metrics, evaluate
    from sae_training.frozen import FrozenConfig
    from sae_training.importing import PublishedCrosscoder, SingleSae, block_crosscoder, import_crosscoder, import_sae
    from sae_training.planted import PlantedConfig, PlantedFeatures, recovery
    from sae_training.run import TrainResult, train
    from sae_training.trainer import Trainer

_HOME = {
    "Crosscoder": "crosscoder",
    "CrosscoderConfig": "config",
    "FrozenConfig": "frozen",
    "Metrics": "evaluation",
    "PlantedConfig": "planted",
    "PlantedFeatures": "planted",
    "PublishedCrosscoder": "importing",
    "SaeBaselineConfig": "baseline",
    "SaeTrainingError": "errors",
    "SingleSae": "importing",
    "TrainConfig": "config",
    "TrainResult": "run",
    "Trainer": "trainer",
    "block_crosscoder": "importing",
    "evaluate": "evaluation",
    "import_crosscoder": "importing",
    "import_sae": "importing",
    "recovery": "planted",
    "train": "run",
    "train_sae_baseline": "baseline",
}

__all__ = [
    "Crosscoder",
    "CrosscoderConfig",
    "FrozenConfig",
    "Metrics",
    "PlantedConfig",
    "PlantedFeatures",
    "PublishedCrosscoder",
    "SaeBaselineConfig",
    "SaeTrainingError",
    "SingleSae",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "block_crosscoder",
    "evaluate",
    "import_crosscoder",
    "import_sae",
    "recovery",
    "train",
    "train_sae_baseline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_training' has no attribute {name!r}")
    return getattr(import_module(f"sae_training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
