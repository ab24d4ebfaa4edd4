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
    from sae_training.trainer import TrainResult, train

_HOME = {
    "Crosscoder": "crosscoder",
    "CrosscoderConfig": "config",
    "FrozenConfig": "frozen",
    "Metrics": "evaluation",
    "SaeTrainingError": "errors",
    "TrainConfig": "config",
    "TrainResult": "trainer",
    "evaluate": "evaluation",
    "train": "trainer",
}

__all__ = [
    "Crosscoder",
    "CrosscoderConfig",
    "FrozenConfig",
    "Metrics",
    "SaeTrainingError",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_training' has no attribute {name!r}")
    return getattr(import_module(f"sae_training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
