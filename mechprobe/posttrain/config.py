"""Settings of ``mechprobe posttrain``: what both arms share, and what SFT and GRPO have of their own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mechprobe.config import FrozenConfig, read_toml, with_overrides
from mechprobe.data.config import PromptsConfig, TextConfig
from mechprobe.errors import ConfigError

FIRST_CHECKPOINT = 10
"""First of the log-spaced checkpoints; each further one is twice the one before (arXiv 2604.06628 begins 10, 20, 40, 80)."""


class LoraConfig(FrozenConfig):
    """Low-rank adapters (peft) instead of training the weights themselves."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """The change of a weight is ``alpha / rank`` times the product of its two factors."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("all-linear",)
    """Names of modules that get an adapter; ``all-linear`` takes every linear one but the unembedding."""


class PosttrainConfig(FrozenConfig):
    """Settings that every arm has. Arms that are compared share the first five."""

    prompts: PromptsConfig = PromptsConfig()
    """The prompts of every arm, with their answers and responses."""
    answer_field: str = "answer"
    """Field with the right answer, which the scorer reads."""
    text: TextConfig = TextConfig()
    """How prompts become token ids."""
    shuffle: bool = False
    """Draw another order of the prompts for each pass. Without it every pass has the order of the file, as in arXiv 2604.06628."""
    order_seed: int = Field(default=0, ge=0)
    """Seed of the order of the prompts. It is not the seed of the training, so that arms of several seeds see one order."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Number of prompts of one optimizer step, over all processes."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the prompts; the last step is filled up from the next pass."""
    steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps, instead of ``epochs``."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak of the learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear fall to 0 at the last step."""
    warmup: float = Field(default=0.1, ge=0)
    """Warm-up, as a share of the steps if it is below 1, otherwise as a number of steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which the gradient is clipped."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Responses in one forward pass of one process; None takes all of the process at once."""
    checkpoints: tuple[int, ...] | None = None
    """Steps to keep besides the last; None keeps 10, 20, 40, 80 and so on."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that stay fixed, such as ``lm_head.*`` or ``model.layers.[01].*``."""
    lora: LoraConfig | None = None
    """Train adapters; None trains the weights."""
    scorer: str = "exact"
    """What judges a response: exact, numeric, letter, yes_no, refusal, boxed, skill, final:<MARKER> or
    python:<MODULE>:<FUNCTION>."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response that a model writes while it is trained or sampled."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of these responses."""
    bf16: bool = False
    """Multiply in bfloat16 (autocast). The weights and the optimizer stay in float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory and costs a third more time."""
    save_dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Precision of the saved weights; ``base`` takes that of the base. Adapters are saved in float32."""
    state_every: int = Field(default=50, ge=1)
    """Steps between two states from which a killed training resumes. It does not change the result."""
    seed: int = Field(default=0, ge=0)
    """Seed of adapters, dropout and sampling."""

    @field_validator("checkpoints")
    @classmethod
    def _rise(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (sorted(set(value)) != list(value) or (value and value[0] < 1)):
            raise ValueError("checkpoints must be positive and rise, such as 10, 20, 40")
        return value

    @model_validator(mode="after")
    def _whole_warmup(self) -> "PosttrainConfig":
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup = {self.warmup} is neither a share below 1 nor a whole number of steps")
        return self

    @property
    def responses_per_step(self) -> int:
        """Number of responses of one optimizer step, over all processes."""
        return self.prompts_per_step

    def n_steps(self, n_prompts: int) -> int:
        """Number of optimizer steps for this many prompts."""
        if self.steps is not None:
            return self.steps
        return max(1, -(-round(self.epochs * n_prompts) // self.prompts_per_step))

    def warmup_steps(self, n_steps: int) -> int:
        """Number of steps of the warm-up."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * n_steps)

    def kept(self, n_steps: int) -> tuple[int, ...]:
        """Steps whose model is kept besides the last one.

        Example:
            >>> PosttrainConfig().kept(100)
            (10, 20, 40, 80)
        """
        if self.checkpoints is not None:
            return tuple(step for step in self.checkpoints if step != n_steps)
        return tuple(step for power in range(64) if (step := FIRST_CHECKPOINT << power) < n_steps)


class OnPolicyConfig(FrozenConfig):
    """Responses for SFT that the base writes itself (rejection sampling)."""

    n: int = Field(default=8, ge=1)
    """Samples of the base for each prompt; of the right ones, one at random is kept (arXiv 2604.06628)."""


class MatchKlConfig(FrozenConfig):
    """SFT that stops where its divergence from base reaches that of another arm."""

    run: str
    """Folder of the other arm, or of a model."""
    every: int = Field(default=1, ge=1)
    """Steps between two measurements."""
    n_prompts: int = Field(default=64, ge=1)
    """Number of prompts on which both are measured, evenly spaced over the file."""


class SftConfig(PosttrainConfig):
    """Supervised fine-tuning: cross entropy of the response tokens, averaged over all of them in the step."""

    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt with response, in tokens; None takes the context of the model."""
    too_long: Literal["refuse", "cut"] = "refuse"
    """Whether longer examples are refused, or lose the end of their response."""
    on_policy: OnPolicyConfig | None = None
    """Sample the responses from the base; None takes those of the file."""
    match_kl: MatchKlConfig | None = None
    """Stop at the divergence of another arm; None trains all steps."""


class GrpoConfig(PosttrainConfig):
    """GRPO (arXiv 2402.03300) with the token-level loss of DAPO (arXiv 2503.14476) and a verifiable reward."""

    lr: float = Field(default=1e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    n_generations: int = Field(default=8, ge=2)
    """Responses to each prompt, which are compared with each other."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term towards the base."""
    scale_rewards: bool = True
    """Divide advantages by the standard deviation of the rewards of their prompt, as in GRPO; without it as in Dr. GRPO."""
    score_cut: bool = False
    """Also score responses that were cut at ``max_new_tokens``; otherwise their reward is 0."""

    @property
    def responses_per_step(self) -> int:
        """Number of responses of one optimizer step, over all processes."""
        return self.prompts_per_step * self.n_generations


def read_settings(
    kind: type[PosttrainConfig],
    file: Path | None,
    overrides: Iterable[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> tuple[str | None, PosttrainConfig]:
    """The base and the settings of an arm from a TOML file that both arms share.

    The file holds the settings of both arms, ``base``, and tables ``[sft]`` and ``[grpo]`` with what one arm has of its own. Paths
    in it are relative to it.

    Args:
        kind: `SftConfig` or `GrpoConfig`.
        file: The file; None starts from the defaults.
        overrides: ``key=value`` or ``section.key=value``, which replace settings of the file.
        extra: Settings that replace these.

    Raises:
        ConfigError: The file is unusable, or a setting is unknown or wrong.
    """
    data = {} if file is None else _relative_to(file.parent, read_toml(file))
    own = {"sft": data.pop("sft", {}), "grpo": data.pop("grpo", {})}
    for name, table in own.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{file}: {name} must be a table [{name}].")
    data = merged(data, own["sft" if kind is SftConfig else "grpo"])
    base = data.pop("base", None)
    data = merged(with_overrides(data, overrides), extra or {})
    return base, kind(**data)


def merged(data: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with the entries of ``further``, table by table."""
    both = {
        key: merged(data[key], value) if isinstance(value, Mapping) and isinstance(data.get(key), Mapping) else value
        for key, value in further.items()
    }
    return {**data, **both}


def _relative_to(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose paths (prompts.file, match_kl.run, base) are made relative to the working directory."""
    result = dict(data)
    for key, value in data.items():
        if isinstance(value, Mapping):
            result[key] = _relative_to(folder, value)
        elif key in ("file", "run", "base") and isinstance(value, str) and (folder / value).exists():
            result[key] = str(folder / value)
    return result
