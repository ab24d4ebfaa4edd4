"""When features appear, how long they stay, and what they do meanwhile: dictionaries over checkpoints.

Names are imported on first use, so that ``import mechprobe.features.emergence`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.features.emergence.config import EmergenceConfig, TrajectoryThresholds
    from mechprobe.features.emergence.result import Emergence
    from mechprobe.features.emergence.stage import emergence

_HOME = {
    "Emergence": "result",
    "EmergenceConfig": "config",
    "TrajectoryThresholds": "config",
    "emergence": "stage",
}

__all__ = ["Emergence", "EmergenceConfig", "TrajectoryThresholds", "emergence"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.features.emergence' has no attribute {name!r}")
    return getattr(import_module(f"mechprobe.features.emergence.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
