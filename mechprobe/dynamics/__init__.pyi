from .config import DynamicsConfig as DynamicsConfig
from .detect import adjust_labels as adjust_labels, dip_and_recovery as dip_and_recovery
from .figure import draw_curves as draw_curves
from .labels import LABELS as LABELS, MEANING as MEANING
from .lengths import length_course as length_course
from .logprobs.config import LogprobsConfig as LogprobsConfig
from .logprobs.figure import draw_log_probs as draw_log_probs
from .logprobs.result import LogprobsResult as LogprobsResult
from .logprobs.stage import log_probs as log_probs
from .logprobs.traces import Trace as Trace
from .order import (
    Course as Course,
    HalfChange as HalfChange,
    LeadLag as LeadLag,
    Order as Order,
    half_change as half_change,
    lead_lag as lead_lag,
    moved_first as moved_first,
)
from .result import DipResult as DipResult, Dynamics as Dynamics, LengthCourse as LengthCourse
from .stage import dynamics as dynamics
from .swept import sweep as sweep
