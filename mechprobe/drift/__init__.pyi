from .divergence.config import DriftConfig as DriftConfig
from .divergence.distances import PositionDivergences as PositionDivergences, divergences as divergences
from .divergence.result import DivergenceResult as DivergenceResult
from .divergence.stage import divergence as divergence
