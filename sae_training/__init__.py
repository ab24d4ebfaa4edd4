"""Dictionary learning over the activations of several models at once: tensors in, dictionary out.

Names are imported on first use, so that ``import sae_training`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_training.errors import SaeTrainingError
    from sae_training.frozen import FrozenConfig

_HOME = {
    "FrozenConfig": "sae_training.frozen",
    "SaeTrainingError": "sae_training.errors",
}

__all__ = [
    "FrozenConfig",
    "SaeTrainingError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
