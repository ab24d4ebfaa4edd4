"""Dictionary learning over the activations of several models at once: tensors in, dictionary out.

Names are imported on first use, so that ``import sae_training`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_training.config import CrosscoderConfig, TrainConfig
    from sae_training.crosscoder import Crosscoder
    from sae_training.errors import SaeTrainingError
    from sae_training.evaluation import Metrics, evaluate
    from sae_training.frozen import FrozenConfig
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
    "SaeTrainingError": "errors",
    "TrainConfig": "config",
    "TrainResult": "run",
    "Trainer": "trainer",
    "evaluate": "evaluation",
    "recovery": "planted",
    "train": "run",
}

__all__ = [
    "Crosscoder",
    "CrosscoderConfig",
    "FrozenConfig",
    "Metrics",
    "PlantedConfig",
    "PlantedFeatures",
    "SaeTrainingError",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "evaluate",
    "recovery",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_training' has no attribute {name!r}")
    return getattr(import_module(f"sae_training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
