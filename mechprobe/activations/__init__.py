"""Activations of every model on one token stream: made, stored, checked, and read back in shuffled batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.activations.collect import cache_activations
    from mechprobe.activations.config import CacheConfig
    from mechprobe.activations.kept import KeptRows
    from mechprobe.activations.live import LiveActivations
    from mechprobe.activations.plan import CachePlan, plan_cache
    from mechprobe.activations.store import ActivationStore
    from mechprobe.activations.train import train_crosscoder
    from mechprobe.activations.train_config import TrainSaeConfig

_HOME = {
    "ActivationStore": "store",
    "CacheConfig": "config",
    "CachePlan": "plan",
    "KeptRows": "kept",
    "LiveActivations": "live",
    "TrainSaeConfig": "train_config",
    "cache_activations": "collect",
    "plan_cache": "plan",
    "train_crosscoder": "train",
}

__all__ = [
    "ActivationStore",
    "CacheConfig",
    "CachePlan",
    "KeptRows",
    "LiveActivations",
    "TrainSaeConfig",
    "cache_activations",
    "plan_cache",
    "train_crosscoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.activations' has no attribute {name!r}")
    return getattr(import_module(f"mechprobe.activations.{_HOME[name]}"), name)
