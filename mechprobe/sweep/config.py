"""Settings of ``mechprobe sweep``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError
from mechprobe.evals.config import ChoiceConfig, EndpointConfig, SamplingConfig
from mechprobe.evals.judging.config import JudgeConfig, RewardConfig
from mechprobe.sweep.registry import SLOTS, STANDIN, STANDINS, Group, real_name
from sae_training.config import unusable_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class SkillItemsConfig(FrozenConfig):
    """Items of the skills benchmark (`mechprobe.evals.skills.generate`)."""

    skill: str = ""
    """Name of the skill; that of the registry for a stand-in."""
    domain: str = "symbolic"
    level: int = Field(default=1, ge=1, le=6)
    split: str = ""
    """Split of the items; empty takes all."""
    n: int = Field(default=64, ge=1)
    """Number of items."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""
    rendering: Literal["auto", "compact", "chat"] = "auto"
    """``auto``: natural language where the tokenizer has all characters of it, else the compact form of the labs."""


class BenchmarkConfig(FrozenConfig):
    """One benchmark: where its items or results come from, and who scores.

    Items come from ``file`` or ``skill``, or the task is ``harness``, or finished ``results`` are read.
    """

    file: str = ""
    """Tasks file, JSON lines of id, prompt, answer, and options where there are any."""
    task: str = ""
    """Task in ``file``; in ``results``, the task of lm-evaluation-harness. Empty where there is one."""
    skill: SkillItemsConfig | None = None
    """Items drawn from the skills benchmark."""
    harness: str = ""
    """YAML file or name of a task of lm-evaluation-harness, run here on its own metrics."""
    results: dict[str, str] = Field(default_factory=dict)
    """Model → folder or file of finished results of lm-evaluation-harness (``results_*.json``, ``samples_*.jsonl``)."""
    rollouts: tuple[str, ...] = ()
    """Files of finished responses to the items, JSON lines (docs/rollouts.md)."""
    inspect: dict[str, str] = Field(default_factory=dict)
    """Model → log of Inspect whose responses to the items are scored."""
    scorer: str = ""
    """Rule, as ``tasks.scorer``; empty takes that of the benchmark's slot."""
    judge: JudgeConfig | None = None
    """A judge in place of a rule."""
    reward: RewardConfig | None = None
    """A reward model in place of a rule."""
    metric: str = ""
    """Metric of lm-evaluation-harness, for example ``acc,none``; empty takes the task's first."""
    title: str = ""
    """Name in tables; by default the paper's, or the benchmark's own."""
    group: Group | None = None
    """Group; by default that of the slot, or ``own``."""
    higher_is_better: bool | None = None
    """Direction; by default that of the slot, or higher."""
    sampling: SamplingConfig | None = None
    """Decoding; by default that of the paper for the slot, and greedy for others."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest response; by default that of the slot, and 64 for others and stand-ins."""
    stop: tuple[str, ...] = ()
    """Texts that end a response."""
    choice: ChoiceConfig = ChoiceConfig()
    """How lines with ``options`` are asked and scored."""
    n_items: int | None = Field(default=None, ge=1)
    """Number of items, from the top of the file."""
    batch_size: int | None = Field(default=None, ge=1)
    """Prompts in one forward batch; by default that of the sweep."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question of ``harness``."""

    @model_validator(mode="after")
    def _check_source(self) -> "BenchmarkConfig":
        if sum(map(bool, (self.file, self.skill, self.harness, self.results))) > 1:
            raise ConfigError("A benchmark has one source: file, skill, harness or results; give one of them.")
        if sum(map(bool, (self.scorer, self.judge, self.reward))) > 1:
            raise ConfigError("A benchmark has one scorer: scorer, judge or reward; give one of them.")
        own = {
            "rollouts": self.rollouts,
            "inspect": self.inspect,
            "scorer": self.scorer,
            "judge": self.judge,
            "reward": self.reward,
        }
        given = next((name for name, value in own.items() if value), None)
        if given and (self.harness or self.results):
            raise ConfigError(
                f"A task of lm-evaluation-harness has its own metrics, so {given} cannot be set beside it."
            )
        unusable = next((name for name in (*self.results, *self.inspect) if unusable_name(name)), None)
        if unusable is not None:
            raise ConfigError(f"A model cannot be named '{unusable}': cells name a folder after it; rename the model.")
        if not self.title.isprintable():
            raise ConfigError(f"The title {self.title!a} has a character that cannot be printed; remove it.")
        if self.rollouts and self.inspect:
            raise ConfigError("Responses come from rollouts or from inspect; give one of them.")
        return self


class SweepConfig(FrozenConfig):
    """Settings of ``mechprobe sweep``."""

    benchmarks: dict[str, BenchmarkConfig] = Field(default_factory=dict)
    """Name → benchmark. Names of the paper's slots take real data; ``standin:<slot>`` is a stand-in. Empty takes all stand-ins."""
    checkpoints: str = ""
    """Folder of further models, ``<arm>/step_<n>/``."""
    base: str = "base"
    """Name of the model with which the others are compared."""
    final_steps: dict[str, int] = Field(default_factory=dict)
    """Model → training step, for models without a step in their name."""
    generation: Literal["hf", "endpoint"] = "hf"
    """Where responses come from, unless a benchmark has rollouts."""
    endpoint: EndpointConfig = EndpointConfig()
    """The server for ``endpoint``."""
    batch_size: int = Field(default=256, ge=1)
    """Prompts in one forward batch."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and of bootstrap intervals."""

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _name_errors(cls, value: Any) -> Any:
        """Build every benchmark here, so that an error says which one it is in."""
        if not isinstance(value, Mapping):
            return value
        made = {}
        for name, settings in value.items():
            if not isinstance(settings, Mapping | BenchmarkConfig):
                raise ConfigError(f"Benchmark {name} is {settings!r}; write a table of settings.")
            try:
                made[name] = settings if isinstance(settings, BenchmarkConfig) else BenchmarkConfig(**settings)
            except ConfigError as error:
                raise ConfigError(f"Benchmark {name}: {error}") from None
        return made

    @field_validator("benchmarks")
    @classmethod
    def _check_names(cls, value: dict[str, BenchmarkConfig]) -> dict[str, BenchmarkConfig]:
        for name, config in value.items():
            check_name(name, config)
        return value

    @model_validator(mode="after")
    def _check_endpoint(self) -> "SweepConfig":
        if self.generation == "endpoint" and not self.endpoint.base_url:
            raise ConfigError(
                "sweep.generation = 'endpoint' needs the address of the server; set sweep.endpoint.base_url."
            )
        return self


def check_name(name: str, config: BenchmarkConfig) -> None:
    """Check that a benchmark has an allowed name, and that no procedural items go by the name of a real benchmark.

    Raises:
        ConfigError: They do, or the name is unknown or cannot be the name of a folder.
    """
    if name.startswith(STANDIN):
        if name not in STANDINS:
            raise ConfigError(f"There is no stand-in '{name}'; there are {', '.join(STANDINS)}.")
        taken = next(
            (part for part in ("file", "harness", "results", "rollouts", "inspect") if getattr(config, part)), None
        )
        if taken:
            raise ConfigError(
                f"'{name}' is drawn from the skills benchmark, so {taken} cannot be set for it; name your data "
                f"{name.removeprefix(STANDIN)}."
            )
        return
    if name.lower().startswith("standin"):
        raise ConfigError(f"The benchmark '{name}' would be taken for a stand-in; rename it.")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"A benchmark cannot be named '{name}'; use letters, digits, '_', '-' and '.'.")
    real = real_name(name, config.title)
    if real is not None and config.skill is not None:
        raise ConfigError(
            f"Benchmark {name} would be taken for {real}, and items of the skills benchmark cannot go by its name; take "
            f"the stand-in '{STANDIN}…', or give them a name and a title of their own."
        )
    if not (config.file or config.skill or config.harness or config.results):
        title = f"the items of {SLOTS[name].title}" if name in SLOTS else "its items"
        raise ConfigError(
            f"Benchmark {name} has no data: mechprobe does not hold {title}; set file, harness or results"
            f"{f', or take {STANDIN}{name}' if f'{STANDIN}{name}' in STANDINS else ''}."
        )


def anchored(value: Any, folder: Path) -> Any:
    """The settings of a benchmark with its existing paths relative to ``folder``."""
    if not isinstance(value, Mapping):
        return value

    def place(path: Any) -> Any:
        return str((folder / path).resolve()) if isinstance(path, str) and path and (folder / path).exists() else path

    result = dict(value)
    for key in ("file", "harness"):
        if key in result:
            result[key] = place(result[key])
    for key in ("results", "inspect"):
        if isinstance(result.get(key), Mapping):
            result[key] = {model: place(path) for model, path in result[key].items()}
    if isinstance(result.get("rollouts"), list):
        result["rollouts"] = [place(path) for path in result["rollouts"]]
    for part, keys in (("judge", ("model", "verdicts")), ("reward", ("model",))):
        if isinstance(result.get(part), Mapping):
            result[part] = {**result[part], **{key: place(result[part][key]) for key in keys if key in result[part]}}
    return result
