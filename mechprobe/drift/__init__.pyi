from .divergence.config import DriftConfig as DriftConfig
from .divergence.distances import PositionDivergences as PositionDivergences, divergences as divergences
from .divergence.result import DivergenceResult as DivergenceResult
from .divergence.stage import divergence as divergence
from .probe.config import ProbeConfig as ProbeConfig
from .probe.result import ProbeResult as ProbeResult
from .probe.stage import probe as probe
from .weights.config import WeightsConfig as WeightsConfig
from .weights.result import WeightsResult as WeightsResult
from .weights.stage import weight_statistics as weight_statistics
