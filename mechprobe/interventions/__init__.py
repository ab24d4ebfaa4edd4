"""Interventions: ceilings by patching, edits of features during generation, controls, verdicts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.interventions.attach import edited
    from mechprobe.interventions.localize import SiteCeilings, localize
    from mechprobe.interventions.run import InterventionResults, intervene

_HOME = {
    "InterventionResults": "mechprobe.interventions.run",
    "SiteCeilings": "mechprobe.interventions.localize",
    "edited": "mechprobe.interventions.attach",
    "intervene": "mechprobe.interventions.run",
    "localize": "mechprobe.interventions.localize",
}

__all__ = ["InterventionResults", "SiteCeilings", "edited", "intervene", "localize"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.interventions' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
