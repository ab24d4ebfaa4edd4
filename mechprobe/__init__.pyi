from . import drift as drift, dynamics as dynamics, posttrain as posttrain
from .cache.config import CacheConfig as CacheConfig, StoreSubset as StoreSubset
from .cache.harvest.live import LiveActivations as LiveActivations
from .cache.harvest.plan import plan_cache as plan_cache
from .cache.result import CachePlan as CachePlan
from .cache.stage import cache_activations as cache_activations
from .cache.store.activation_store import ActivationStore as ActivationStore
from .config import Comparison as Comparison
from .data.config import TextConfig as TextConfig
from .dictionary.baselines.stage import measure_baselines as measure_baselines
from .dictionary.config import QualityGate as QualityGate, TrainSaeConfig as TrainSaeConfig
from .dictionary.quality import measure_quality as measure_quality
from .dictionary.readout import Readout as Readout
from .dictionary.result import Quality as Quality
from .dictionary.stage import train_crosscoder as train_crosscoder
from .emergence.config import EmergenceConfig as EmergenceConfig, TrajectoryThresholds as TrajectoryThresholds
from .emergence.result import Emergence as Emergence
from .emergence.stage import emergence as emergence
from .errors import MechprobeError as MechprobeError
from .evals import skills as skills
from .evals.config import (
    ChoiceConfig as ChoiceConfig,
    EndpointConfig as EndpointConfig,
    EvaluateConfig as EvaluateConfig,
    HarnessConfig as HarnessConfig,
)
from .evals.stage import evaluate_outcomes as evaluate_outcomes
from .evals.tasks import Task as Task, load_tasks as load_tasks, split_halves as split_halves
from .features.config import (
    ClassThresholds as ClassThresholds,
    FeaturesConfig as FeaturesConfig,
    NullsConfig as NullsConfig,
)
from .features.examples.contexts import feature_examples as feature_examples
from .features.examples.labels import Labels as Labels, label_features as label_features
from .features.examples.promoted import promoted_tokens as promoted_tokens
from .features.result import NullResult as NullResult, Stability as Stability
from .features.stage import (
    FeatureAnalysis as FeatureAnalysis,
    analyze_features as analyze_features,
    explain_features as explain_features,
)
from .features.table.feature_table import FeatureTable as FeatureTable, feature_table as feature_table
from .features.table.norms import mas as mas, nrn as nrn
from .features.validation.stage import measure_null as measure_null, measure_stability as measure_stability
from .interventions.config import InterveneConfig as InterveneConfig
from .interventions.dictionaries.result import DictionarySeeds as DictionarySeeds
from .interventions.edits.edit import Edit as Edit, edit_sweep as edit_sweep
from .interventions.harness.result import HarnessResults as HarnessResults
from .interventions.harness.stage import evaluate_harness as evaluate_harness
from .interventions.hooks.attach import SiteEdit as SiteEdit, edited as edited, edited_at as edited_at
from .interventions.hooks.positions import PositionRule as PositionRule
from .interventions.result import InterventionResults as InterventionResults
from .interventions.stage import intervene as intervene
from .localization.config import LocalizeConfig as LocalizeConfig
from .localization.result import SiteCeilings as SiteCeilings
from .localization.stage import localize as localize
from .models.family import ModelFamily as ModelFamily
from .models.generation import generate as generate
from .models.load import LanguageModel as LanguageModel
from .pipeline.dictionaries import dictionary_seeds as dictionary_seeds
from .pipeline.run import Run as Run
from .records import Outcome as Outcome, Outcomes as Outcomes, Sample as Sample
from .report.config import ReportConfig as ReportConfig
from .report.stage import report as report
from .run_config import RunConfig as RunConfig
from .run_layout import RunLayout as RunLayout
from .selection.config import SelectConfig as SelectConfig
from .selection.result import Selection as Selection
from .selection.stage import select_features as select_features
from .sweep.config import BenchmarkConfig as BenchmarkConfig, SweepConfig as SweepConfig
from .sweep.result import CellResult as CellResult, SweepResults as SweepResults
from .sweep.stage import sweep as sweep
from .types import Site as Site
