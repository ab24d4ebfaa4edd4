from .weights.config import WeightsConfig as WeightsConfig
from .weights.result import WeightsResult as WeightsResult
from .weights.stage import weight_statistics as weight_statistics
