"""mechprobe: what did post-training do inside a model?

The public names, imported on first use so that ``import mechprobe`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.activations import ActivationStore, cache_activations, train_crosscoder
    from mechprobe.activations.config import CacheConfig
    from mechprobe.activations.train_config import TrainSaeConfig
    from mechprobe.errors import MechprobeError
    from mechprobe.evals import skills
    from mechprobe.evals.choice import ChoiceConfig
    from mechprobe.evals.harness import HarnessConfig
    from mechprobe.evals.outcomes import EvaluateConfig, evaluate_outcomes
    from mechprobe.evals.tasks import Task, load_tasks, split_halves
    from mechprobe.features.config import FeaturesConfig, SelectConfig
    from mechprobe.features.emergence import Emergence, EmergenceConfig, emergence
    from mechprobe.features.generalization import Selection, select_features
    from mechprobe.features.labels import Labels, label_features
    from mechprobe.features.readout import Readout
    from mechprobe.features.table import FeatureTable, feature_table
    from mechprobe.interventions.attach import edited
    from mechprobe.interventions.config import InterveneConfig
    from mechprobe.interventions.harness import HarnessResults, evaluate_harness
    from mechprobe.interventions.localize import LocalizeConfig, SiteCeilings, localize
    from mechprobe.interventions.run import InterventionResults, intervene
    from mechprobe.models.family import ModelFamily
    from mechprobe.models.generation import generate
    from mechprobe.models.load import LanguageModel
    from mechprobe.pipeline import Run
    from mechprobe.records import Outcome, Outcomes, Sample
    from mechprobe.report import report
    from mechprobe.run_config import RunConfig
    from mechprobe.types import Site

_HOME = {
    "ActivationStore": "mechprobe.activations",
    "CacheConfig": "mechprobe.activations.config",
    "ChoiceConfig": "mechprobe.evals.choice",
    "Emergence": "mechprobe.features.emergence",
    "EmergenceConfig": "mechprobe.features.emergence",
    "EvaluateConfig": "mechprobe.evals.outcomes",
    "FeatureTable": "mechprobe.features.table",
    "FeaturesConfig": "mechprobe.features.config",
    "HarnessConfig": "mechprobe.evals.harness",
    "HarnessResults": "mechprobe.interventions.harness",
    "InterveneConfig": "mechprobe.interventions.config",
    "InterventionResults": "mechprobe.interventions.run",
    "Labels": "mechprobe.features.labels",
    "LanguageModel": "mechprobe.models.load",
    "LocalizeConfig": "mechprobe.interventions.localize",
    "MechprobeError": "mechprobe.errors",
    "ModelFamily": "mechprobe.models.family",
    "Outcome": "mechprobe.records",
    "Outcomes": "mechprobe.records",
    "Readout": "mechprobe.features.readout",
    "Run": "mechprobe.pipeline",
    "RunConfig": "mechprobe.run_config",
    "Sample": "mechprobe.records",
    "SelectConfig": "mechprobe.features.config",
    "Selection": "mechprobe.features.generalization",
    "Site": "mechprobe.types",
    "SiteCeilings": "mechprobe.interventions.localize",
    "Task": "mechprobe.evals.tasks",
    "TrainSaeConfig": "mechprobe.activations.train_config",
    "cache_activations": "mechprobe.activations",
    "edited": "mechprobe.interventions.attach",
    "emergence": "mechprobe.features.emergence",
    "evaluate_harness": "mechprobe.interventions.harness",
    "evaluate_outcomes": "mechprobe.evals.outcomes",
    "feature_table": "mechprobe.features.table",
    "generate": "mechprobe.models.generation",
    "intervene": "mechprobe.interventions.run",
    "label_features": "mechprobe.features.labels",
    "load_tasks": "mechprobe.evals.tasks",
    "localize": "mechprobe.interventions.localize",
    "select_features": "mechprobe.features.generalization",
    "split_halves": "mechprobe.evals.tasks",
    "train_crosscoder": "mechprobe.activations",
}
_MODULES = {"report": "mechprobe.report", "skills": "mechprobe.evals.skills"}

__all__ = [
    "ActivationStore",
    "CacheConfig",
    "ChoiceConfig",
    "Emergence",
    "EmergenceConfig",
    "EvaluateConfig",
    "FeatureTable",
    "FeaturesConfig",
    "HarnessConfig",
    "HarnessResults",
    "InterveneConfig",
    "InterventionResults",
    "Labels",
    "LanguageModel",
    "LocalizeConfig",
    "MechprobeError",
    "ModelFamily",
    "Outcome",
    "Outcomes",
    "Readout",
    "Run",
    "RunConfig",
    "Sample",
    "SelectConfig",
    "Selection",
    "Site",
    "SiteCeilings",
    "Task",
    "TrainSaeConfig",
    "cache_activations",
    "edited",
    "emergence",
    "evaluate_harness",
    "evaluate_outcomes",
    "feature_table",
    "generate",
    "intervene",
    "label_features",
    "load_tasks",
    "localize",
    "report",
    "select_features",
    "skills",
    "split_halves",
    "train_crosscoder",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
