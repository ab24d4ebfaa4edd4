"""What the latents of a crosscoder are: whose they are, how often they fire, and which of them carry generalization.

Names are imported on first use, so that ``import mechprobe.features`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.features.config import ClassThresholds, FeaturesConfig, QualityGate
    from mechprobe.features.examples import feature_examples
    from mechprobe.features.labels import Labels, label_features
    from mechprobe.features.norms import mas, nrn
    from mechprobe.features.promoted import promoted_tokens
    from mechprobe.features.quality import Quality, measure_quality
    from mechprobe.features.readout import Readout
    from mechprobe.features.stage import FeatureAnalysis, analyze_features, explain_features
    from mechprobe.features.table import FeatureTable, feature_table

_HOME = {
    "ClassThresholds": "config",
    "FeatureAnalysis": "stage",
    "FeatureTable": "table",
    "FeaturesConfig": "config",
    "Labels": "labels",
    "Quality": "quality",
    "QualityGate": "config",
    "Readout": "readout",
    "analyze_features": "stage",
    "explain_features": "stage",
    "feature_examples": "examples",
    "feature_table": "table",
    "label_features": "labels",
    "mas": "norms",
    "measure_quality": "quality",
    "nrn": "norms",
    "promoted_tokens": "promoted",
}

__all__ = [
    "ClassThresholds",
    "FeatureAnalysis",
    "FeatureTable",
    "FeaturesConfig",
    "Labels",
    "Quality",
    "QualityGate",
    "Readout",
    "analyze_features",
    "explain_features",
    "feature_examples",
    "feature_table",
    "label_features",
    "mas",
    "measure_quality",
    "nrn",
    "promoted_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.features' has no attribute {name!r}")
    return getattr(import_module(f"mechprobe.features.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
