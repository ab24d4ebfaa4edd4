"""Interventions: ceilings by patching, edits of features during generation, controls, verdicts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.interventions.attach import SiteEdit, edited, edited_at
    from mechprobe.interventions.edits import Edit, edit_sweep
    from mechprobe.interventions.localize import SiteCeilings, localize
    from mechprobe.interventions.positions import PositionRule
    from mechprobe.interventions.run import InterventionResults, intervene

_HOME = {
    "Edit": "mechprobe.interventions.edits",
    "InterventionResults": "mechprobe.interventions.run",
    "PositionRule": "mechprobe.interventions.positions",
    "SiteCeilings": "mechprobe.interventions.localize",
    "SiteEdit": "mechprobe.interventions.attach",
    "edit_sweep": "mechprobe.interventions.edits",
    "edited": "mechprobe.interventions.attach",
    "edited_at": "mechprobe.interventions.attach",
    "intervene": "mechprobe.interventions.run",
    "localize": "mechprobe.interventions.localize",
}

__all__ = [
    "Edit",
    "InterventionResults",
    "PositionRule",
    "SiteCeilings",
    "SiteEdit",
    "edit_sweep",
    "edited",
    "edited_at",
    "intervene",
    "localize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.interventions' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
