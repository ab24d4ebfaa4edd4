"""Settings of judges and reward models."""

from typing import Literal

from pydantic import Field, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError
from mechprobe.evals.config import EndpointConfig

DEFAULT_TEMPLATE = "Question: {prompt}\nAnswer: {response}\nIs this answer right? Write yes or no.\n"
Reads = Literal["yes_no", "score"]


class JudgeConfig(FrozenConfig):
    """A judge. Exactly one of ``model`` alone, ``endpoint`` with ``model``, ``function`` and ``verdicts`` says who it is."""

    model: str = ""
    """Folder or hub name of a causal language model, or the model's name on the server of ``endpoint``."""
    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible server, asked at ``/chat/completions`` with temperature 0."""
    function: str = ""
    """``python:<module>:<function>``, called with prompt and response."""
    verdicts: str = ""
    """File of finished verdicts, JSON lines."""
    template: str = DEFAULT_TEMPLATE
    """What a model or a server reads; ``{prompt}``, ``{response}`` and ``{answer}`` are filled in."""
    reads: Reads = "yes_no"
    """What a verdict is: yes or no, or a number on ``scale``."""
    by: Literal["logits", "word"] = "logits"
    """How a local model decides: by the log-probabilities of ``yes`` and ``no``, or by what it writes."""
    yes: str = " yes"
    """Continuation that means yes, for ``logits``."""
    no: str = " no"
    """Continuation that means no, for ``logits``."""
    scale: tuple[float, float] = (1.0, 5.0)
    """Lowest and highest number, for ``score``."""
    success: float | None = None
    """Number from which a response counts, for ``score``; None takes the highest."""
    invert: bool = False
    """Whether *no* counts instead of *yes*."""
    max_new_tokens: int = Field(default=16, ge=1)
    """Longest verdict in words, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Number of texts in one forward batch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of a local model."""
    chat_template: bool = False
    """Whether a local model reads the text as the message of a user."""

    @model_validator(mode="after")
    def _check(self) -> "JudgeConfig":
        local = bool(self.model) and self.endpoint is None
        if sum((local, self.endpoint is not None, bool(self.function), bool(self.verdicts))) != 1:
            raise ConfigError(
                "A judge is exactly one of model, endpoint (with the model's name on the server), function and verdicts; give one."
            )
        if self.endpoint is not None and not (self.endpoint.base_url and self.model):
            raise ConfigError("A judge on a server needs endpoint.base_url and model, its name there; give both.")
        if (local or self.endpoint is not None) and "{response}" not in self.template:
            raise ConfigError(
                "The template of the judge has no {response}, so that it would not read it; write it there."
            )
        if local and self.by == "logits" and self.reads == "score":
            raise ConfigError('A judge that gives a score writes it; set judge.by = "word".')
        low, high = self.scale
        if not low < high or (self.success is not None and not low < self.success <= high):
            raise ConfigError(
                "The scale of a judge must rise, and its success must lie above the lowest number; correct them."
            )
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest verdict."""
        return (0.0, 1.0) if self.reads == "yes_no" else self.scale

    def counts(self, verdict: float) -> bool:
        """Whether a response with this verdict counts in the share that is reported."""
        if self.reads == "yes_no":
            return (verdict == 1.0) != self.invert
        return verdict >= (self.scale[1] if self.success is None else self.success)


class RewardConfig(FrozenConfig):
    """A reward model: a sequence classifier with one output, whose raw logit is the reward."""

    model: str
    """Folder or hub name."""
    form: Literal["auto", "chat", "pair"] = "auto"
    """``chat``: the chat template renders question and response. ``pair``: the tokenizer joins them as two texts. ``auto``: chat
    where the tokenizer has a template."""
    batch_size: int = Field(default=16, ge=1)
    """Number of texts in one forward batch; rewards do not depend on it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the weights. In 16 bits rewards depend on the batch in their last digits."""
