"""Settings of the evaluate stage, of multiple-choice items, and of lm-evaluation-harness."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError


class EndpointConfig(FrozenConfig):
    """The inference server of ``evaluate.generation = "endpoint"``."""

    base_url: str = ""
    """Address of an OpenAI-compatible server, for example ``http://localhost:8000/v1``."""
    models: dict[str, str] = Field(default_factory=dict)
    """Name of each model on the server, by its name in the family; a model that is not listed has the same name."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; empty sends no key. The key itself is never stored."""
    prompt_as: Literal["auto", "ids", "text"] = "auto"
    """Whether prompts are sent as token ids or as text. ``auto`` sends ids unless the server takes text only."""
    concurrency: int = Field(default=16, ge=1)
    """Number of requests at a time."""
    timeout: float = Field(default=600.0, gt=0)
    """Longest wait for an answer, in seconds."""
    max_retries: int = Field(default=8, ge=0)
    """Number of times that a failed request is repeated, with waits that double from one second up to a minute."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(  # a ValueError would show the value, and with it the key
                "evaluate.endpoint.base_url holds a key or a query; give the address alone, and name the environment "
                "variable that holds the key in evaluate.endpoint.api_key_env."
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ConfigError(  # likewise
                "evaluate.endpoint.api_key_env must be the name of an environment variable; put the key into that variable."
            )
        return value


class EvaluateConfig(FrozenConfig):
    """Settings of ``mechprobe evaluate``."""

    n_per_task: int | None = Field(default=None, ge=1)
    """Number of samples per task, taken from the top of its file; None takes all."""
    batch_size: int = Field(default=512, ge=1)
    """Number of prompts in one forward batch."""
    base: str = "base"
    """Name of the model that the other models are compared with."""
    force_prefix: str = ""
    """Text that every response of ``base`` is forced to begin with, as an additional baseline; empty for none."""
    generation: Literal["hf", "endpoint", "import"] = "hf"
    """Where responses come from. ``hf``: transformers. ``endpoint``: an inference server. ``import``: files of rollouts."""
    imports: tuple[str, ...] = ()
    """Files of rollouts for ``import``, JSON lines; see docs/rollouts.md."""
    endpoint: EndpointConfig = EndpointConfig()
    """The server for ``endpoint``."""

    @model_validator(mode="after")
    def _check_source(self) -> "EvaluateConfig":
        if self.generation == "endpoint" and not self.endpoint.base_url:
            raise ValueError("generation = 'endpoint' needs the address of the server; set evaluate.endpoint.base_url")
        if (self.generation == "import") != bool(self.imports):
            raise ValueError("generation = 'import' and imports belong together; give both, or --import FILE")
        return self


class SamplingConfig(FrozenConfig):
    """How responses to tasks are decoded; the same in every stage that asks a model."""

    n: int = Field(default=1, ge=1)
    """Number of responses to every prompt; more than one needs a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that sampling keeps."""
    top_k: int = Field(default=0, ge=0)
    """Number of most probable tokens that sampling keeps; 0 keeps all."""
    seed: int = Field(default=0, ge=0)
    """Seed from which every response gets its own."""

    @model_validator(mode="after")
    def _check_temperature(self) -> "SamplingConfig":
        """Reject settings that greedy decoding would ignore."""
        ignored = {"n": self.n > 1, "top_p": self.top_p < 1, "top_k": self.top_k > 0}
        for name in (name for name, given in ignored.items() if given and self.greedy):
            why = "several greedy responses would be equal" if name == "n" else "greedy decoding does not use it"
            raise ConfigError(
                f"tasks.sampling.{name} is {getattr(self, name)} at temperature 0, but {why}; set tasks.sampling.temperature."
            )
        return self

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one, so that nothing is drawn."""
        return self.temperature == 0


ChoiceRule = Literal["mean", "all"]
"""``mean``: the option of highest mean probability over the orders decides. ``all``: every order must give the right option."""


class ChoiceConfig(FrozenConfig):
    """How multiple-choice items are presented and judged."""

    show: Literal["letters", "none"] = "letters"
    """``letters``: the prompt lists the options with letters, and the letters are scored. ``none``: the prompt does not list
    the options, and their texts are scored; a single order is then enough."""
    orders: Annotated[int, Field(ge=1)] | Literal["cyclic"] = "cyclic"
    """``cyclic``: one order per option, so that each option appears once at each position. A number: that many distinct
    orders, the order of the file first and the others drawn at random."""
    rule: ChoiceRule = "mean"
    """How the orders of an item decide whether it is right; see `mechprobe.evals.choice`."""
    normalize: Literal["none", "tokens", "characters"] = "none"
    """What an option's log-likelihood is divided by, so that options of different length can be compared."""
    cue: str = "Answer:"
    """Last line of a prompt that lists the options."""
    delimiter: str = " "
    """Text between the prompt and the scored continuation."""
    seed: int = Field(default=0, ge=0)
    """Seed of randomly drawn orders."""


class HarnessConfig(FrozenConfig):
    """Settings of lm-evaluation-harness, under the names that the harness uses."""

    limit: int | None = Field(default=None, ge=1)
    """Number of documents per task, taken from the top; None takes all."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Number of examples before each question, except where a task fixes it at 0; None keeps each task's own number."""
    batch_size: int = Field(default=32, ge=1)
    """Number of requests in one batch."""
    chat_template: bool = False
    """Whether prompts are formatted with the tokenizer's chat template."""
    think_end: str = ""
    """End tag of the thinking of a model (``think_end_token`` of the harness), used where tokenizer or chat template know it.
    The command line takes the second tag of ``tasks.think``."""
    n_random: int = Field(default=0, ge=0)
    """Number of matched random sets that are run beside every edit. Each costs as much as the edit itself."""
