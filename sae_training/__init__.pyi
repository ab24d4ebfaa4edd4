from .baseline import SaeBaselineConfig as SaeBaselineConfig, train_sae_baseline as train_sae_baseline
from .config import CrosscoderConfig as CrosscoderConfig
from .crosscoder import Crosscoder as Crosscoder
from .errors import SaeTrainingError as SaeTrainingError
from .frozen import FrozenConfig as FrozenConfig
from .importing.conversion import PublishedCrosscoder as PublishedCrosscoder, block_crosscoder as block_crosscoder
from .importing.formats import import_crosscoder as import_crosscoder
from .importing.single_sae import SingleSae as SingleSae, import_sae as import_sae
from .planted import PlantedConfig as PlantedConfig, PlantedFeatures as PlantedFeatures, recovery as recovery
from .reconstruction import (
    Metrics as Metrics,
    ReconstructionSums as ReconstructionSums,
    VarianceSums as VarianceSums,
    evaluate as evaluate,
)
from .run import TrainResult as TrainResult, train as train
from .train_config import TrainConfig as TrainConfig
from .trainer import Trainer as Trainer
