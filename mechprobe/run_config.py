"""The configuration of ``mechprobe run``: a section for every stage, and what they share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator

from mechprobe.cache.config import CacheConfig
from mechprobe.config import FrozenConfig, read_toml, with_overrides
from mechprobe.data.config import HUB, PromptsConfig, TextConfig
from mechprobe.dictionary.baselines.config import BaselinesConfig
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.weights.config import WeightsConfig
from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.evals.config import ChoiceConfig, EvaluateConfig, SamplingConfig
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.features.config import FeaturesConfig, NullsConfig
from mechprobe.files import read_json, write_json
from mechprobe.interventions.config import InterveneConfig
from mechprobe.json_fields import printable_models
from mechprobe.localization.config import LocalizeConfig
from mechprobe.models.family import ModelFamily
from mechprobe.report.config import ReportConfig
from mechprobe.run_layout import RUN_FILE
from mechprobe.selection.config import SelectConfig
from mechprobe.sweep.config import SweepConfig, anchored
from mechprobe.types import THINK, ThinkTags


class TasksConfig(FrozenConfig):
    """Where the tasks are and how they are scored."""

    file: str = ""
    """JSON lines of id, task, prompt, answer, and options where there are any."""
    scorer: str = "exact"
    """``exact``, ``numeric``, ``letter``, ``yes_no``, ``refusal``, ``boxed``, ``final:<MARKER>`` or ``python:<module>:<function>``."""
    scorers: dict[str, str] = Field(default_factory=dict)
    """Scorers of single tasks, by task name, instead of ``scorer``."""
    choice: ChoiceConfig = ChoiceConfig()
    """How lines with ``options`` are asked and scored."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens; a longer one is cut and not scored."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are decoded: greedily, or ``n`` samples of each at a temperature."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a response, for example ``["\\n\\nQuestion:"]`` for a base model that writes another question."""
    think: ThinkTags | None = THINK
    """Start and end tag of the thinking of a model, which scorers do not read; ``false`` scores whole responses."""
    names: tuple[str, ...] | None = None
    """Tasks to use; None takes all in the file."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw. They are measured, but neither select features nor enter verdicts."""
    force_prefix: str = ""
    """Beginning of the response that is forced on the base as a baseline; empty for none."""

    @field_validator("think", mode="before")
    @classmethod
    def _read_think(cls, value: Any) -> Any:
        """``false`` and an empty list stand for None, which TOML does not have. The start tag may be empty."""
        if value in (False, None, "", [], ()):
            return None
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(tag, str) for tag in value):
            raise ConfigError('tasks.think must be two tags, such as ["<think>", "</think>"], or false.')
        if not value[1].strip():
            raise ConfigError(
                "The second tag of tasks.think, which ends the thinking, is empty; write it, or set tasks.think = false."
            )
        return value


class RunConfig(FrozenConfig):
    """Everything ``mechprobe run`` needs. Sections are named as the commands."""

    name: str = ""
    """Title of the report."""
    notes: tuple[str, ...] = ()
    """Notes at the top of the report."""
    models: dict[str, str] = Field(default_factory=dict)
    """Name to local folder or hub name."""
    base: str = "base"
    """Name of the model before post-training."""
    tuned: str = "rl"
    """Name of the model whose generalization is explained."""
    near: tuple[str, ...] | None = None
    """Models similar enough to share encoder slots under the ``swap`` read-out; None means all models."""
    text: TextConfig = TextConfig()
    """How prompts and tasks become token ids, in every stage."""
    tasks: TasksConfig = TasksConfig()
    prompts: PromptsConfig = PromptsConfig()
    localize: LocalizeConfig = LocalizeConfig()
    cache: CacheConfig = CacheConfig()
    train_sae: TrainSaeConfig = TrainSaeConfig()
    features: FeaturesConfig = FeaturesConfig()
    nulls: NullsConfig = NullsConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    emergence: EmergenceConfig = EmergenceConfig()
    drift: DriftConfig = DriftConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    logprobs: LogprobsConfig = LogprobsConfig()
    weights: WeightsConfig = WeightsConfig()
    probe: ProbeConfig = ProbeConfig()
    sweep: SweepConfig = SweepConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    select: SelectConfig = SelectConfig()
    intervene: InterveneConfig = InterveneConfig()
    report: ReportConfig = ReportConfig()
    seed: int = Field(default=0, ge=0)
    """Seed of every stage that does not set its own."""
    device: str = "cpu"
    """Device of models and crosscoder."""
    dtype: str = "auto"
    """Dtype in which the models run: ``float32``, ``bfloat16``, ``float16``, or ``auto``: that of their files on a GPU, float32 on a CPU."""
    attention: str = "eager"
    """``eager``, which has the bits of TransformerBridge; ``sdpa`` or ``flash``, refused where they move residuals too far."""
    tf32: bool = False
    """Whether float32 matrix products of the models use TF32 on NVIDIA cards."""
    device_map: str | dict[str, int | str] | None = None
    """How accelerate spreads each model over devices: ``auto``, or a device per module. None uses ``device``."""

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """The settings as they were given, before shared ones reached the sections; a run folder keeps these."""
        return self._given

    @classmethod
    def build(
        cls,
        config: Path | str | None,
        overrides: Sequence[str] = (),
        *,
        models: Mapping[str, str] | None = None,
        seed: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        extra: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> "RunConfig":
        """Build the configuration from a TOML file or the settings of ``start``, then overrides, then options.

        The settings ``base``, ``tuned``, ``near``, ``tasks.trained``, ``tasks.force_prefix`` and ``seed`` reach every stage
        that does not set its own, and ``text`` reaches all. Paths in a TOML file are relative to the file.

        Raises:
            ConfigError: The file or a setting cannot be used.
        """
        read = _anchored(read_toml(config), Path(config).parent) if config else dict(start or {})
        data = with_overrides(read, overrides)
        options = {"models": dict(models) if models else None, "seed": seed, "device": device, "dtype": dtype}
        data |= {name: value for name, value in options.items() if value is not None}
        for name, value in (extra or {}).items():
            own = data.get(name, {})
            if not isinstance(value, Mapping):
                data[name] = value
            elif isinstance(own, Mapping):  # else the section itself is refused below
                data[name] = {**own, **value}
        data = _anchored(data, Path())
        if isinstance(data.get("cache"), dict) and "text" in data["cache"]:
            raise ConfigError("cache.text cannot be set alone, because tasks use the same rule; set the section text.")
        cls(**{name: data[name] for name in SHARED if name in data})  # an error names the key that was given
        try:
            made = cls(**_with_shared(data))
        except ConfigError as error:
            raise ConfigError(_by_section(str(error))) from None
        printable_models(made.models, "models")
        made._given.update(data)
        return made

    @classmethod
    def of_run(cls, folder: Path | str) -> "RunConfig":
        """Read the configuration of a run folder; raise `ArtifactError` if it has none."""
        return cls.build(None, start=read_run_file(folder))

    def require_models(self) -> None:
        """Raise `ConfigError` if no models are configured."""
        if not self.models:
            raise ConfigError("No models are given; write --models base=PATH sft=PATH rl=PATH, or --config FILE.")

    def family(self, *, trust_remote_code: bool = False) -> ModelFamily:
        """Find and check the models.

        Raises:
            ConfigError: No models are configured.
            ModelError: One cannot be used.
        """
        self.require_models()
        return ModelFamily.load(
            self.models,
            device=self.device,
            dtype=self.dtype,
            device_map=self.device_map,
            attention=self.attention,
            tf32=self.tf32,
            trust_remote_code=trust_remote_code,
            bos_decided=self.text.bos != "auto" or bool(self.text.chat_template),
        )

    def load_tasks(self) -> list[Task]:
        """Read the tasks.

        Raises:
            ConfigError: None are configured.
            InputError: The file cannot be used.
        """
        if not self.tasks.file:
            raise ConfigError(
                "No tasks are given; set tasks.file in the configuration or with --set, or give --tasks FILE where a command has it."
            )
        tasks = load_tasks(
            self.tasks.file,
            scorer_spec=self.tasks.scorer,
            scorers=self.tasks.scorers,
            choice=self.tasks.choice,
            max_new_tokens=self.tasks.max_new_tokens,
            sampling=self.tasks.sampling,
            stop=self.tasks.stop,
            think=self.tasks.think,
            text=self.text,
            names=self.tasks.names,
        )
        known = {task.name for task in tasks}
        for section in ("tasks", "localize", "select", "intervene"):
            unknown = [name for name in getattr(self, section).trained if name not in known]
            if unknown:
                raise ConfigError(f"{section}.trained names '{unknown[0]}', which is not among the tasks.")
        return tasks

    def prompt_source(self) -> PromptsConfig:
        """The prompts; raises `ConfigError` if none are configured or their format is unknown."""
        self.prompts.detected()
        return self.prompts


def _anchored(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make existing paths absolute, relative to ``folder``, so that a run folder works from any working directory.

    The path of a model that does not exist there is not changed, because it may be a hub name.
    """
    result = dict(data)
    if isinstance(data.get("models"), dict):
        places = {name: folder / str(path) for name, path in data["models"].items()}
        result["models"] = {
            name: str(places[name].resolve()) if places[name].exists() else str(path)
            for name, path in data["models"].items()
        }
    for section, key in (
        ("tasks", "file"),
        ("prompts", "file"),
        ("emergence", "checkpoints"),
        ("sweep", "checkpoints"),
        ("drift", "checkpoints"),
        ("logprobs", "checkpoints"),
        ("logprobs", "teacher_tokenizer"),
        ("drift", "lens_file"),
        ("intervene", "collateral_file"),
    ):
        own = data.get(section)
        value = own.get(key) if isinstance(own, dict) else None
        if isinstance(own, dict) and isinstance(value, str) and value and not value.startswith(HUB):
            result[section] = {**own, key: _anchored_path(value, folder)}
    own = result.get("logprobs")
    if isinstance(own, dict) and isinstance(own.get("traces"), dict) and isinstance(own["traces"].get("file"), str):
        value = own["traces"]["file"]
        place = value if not value or value.startswith(HUB) else _anchored_path(value, folder)
        result["logprobs"] = {**own, "traces": {**own["traces"], "file": place}}
    own = result.get("sweep")
    if isinstance(own, dict) and isinstance(own.get("benchmarks"), dict):
        benchmarks = {name: anchored(value, folder) for name, value in own["benchmarks"].items()}
        result["sweep"] = {**own, "benchmarks": benchmarks}
    own = data.get("evaluate")
    if isinstance(own, dict) and isinstance(own.get("imports"), list):
        paths = [_anchored_path(value, folder) if isinstance(value, str) else value for value in own["imports"]]
        result["evaluate"] = {**own, "imports": paths}
    return result


def _anchored_path(value: str, folder: Path) -> str:
    place = folder / value
    return str(place.resolve() if place.exists() else place)


def read_run_file(folder: Path | str) -> dict[str, Any]:
    """Read the settings of a run folder; raise `ArtifactError` if it has none."""
    data = read_json(Path(folder) / RUN_FILE)
    if not isinstance(data, dict):
        raise ArtifactError(f"{Path(folder) / RUN_FILE} does not hold the settings of a run; give --config FILE.")
    return data


def write_run_file(folder: Path | str, given: Mapping[str, Any]) -> None:
    """Write settings, as given, for `read_run_file`. The models keep their order, which is that of outcomes and tables."""
    write_json(Path(folder) / RUN_FILE, given, sort_keys=False)


def _by_section(said: str) -> str:
    """An error of the settings of a section; it names the section, as the file does, and not its class."""
    named, colon, rest = said.partition(": ")
    kinds = {getattr(field.annotation, "__name__", ""): section for section, field in RunConfig.model_fields.items()}
    return f"[{kinds[named]}]{colon}{rest}" if named in kinds else said


def _with_shared(data: dict[str, Any]) -> dict[str, Any]:
    """Add the shared settings to every section that does not set them itself."""
    tasks = data.get("tasks", {})
    values = {name: data[name] for name in SHARED if name in data}
    if isinstance(tasks, dict):
        values |= {name: tasks[name] for name in ("trained", "force_prefix") if name in tasks}
    result = dict(data)
    for section, field in RunConfig.model_fields.items():
        own, kind = data.get(section, {}), field.annotation
        if isinstance(own, dict) and isinstance(kind, type) and issubclass(kind, FrozenConfig):
            result[section] = {name: value for name, value in values.items() if name in kind.model_fields} | own
    sampling = tasks.get("sampling", {}) if isinstance(tasks, dict) else None
    if "seed" in data and isinstance(sampling, dict):
        result["tasks"] = {**tasks, "sampling": {"seed": data["seed"]} | sampling}
    return result


SHARED = ("base", "tuned", "near", "seed", "text")
"""Settings of the run that reach every section that has them."""
