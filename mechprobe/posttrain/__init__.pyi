from .config import (
    GrpoConfig as GrpoConfig,
    LoraConfig as LoraConfig,
    MatchKlConfig as MatchKlConfig,
    OnPolicyConfig as OnPolicyConfig,
    SftConfig as SftConfig,
)
from .result import PosttrainResult as PosttrainResult
from .stage import grpo as grpo, sft as sft
