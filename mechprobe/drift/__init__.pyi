from . import probe as probe
from .probe.config import ProbeConfig as ProbeConfig
from .probe.result import ProbeResult as ProbeResult
