"""Typed record of ``summary.json``, which the evaluate stage writes and the command line and the report read."""

from typing import Any, Literal

from pydantic import Field

from mechprobe.results import Number, Result
from mechprobe.statistics import Interval

Accuracy = dict[str, Interval]
"""Task → accuracy with its Wilson 95 % interval and n."""


class PairedTest(Result):
    """Exact McNemar test of one model against the base on the samples of one task."""

    gained: int
    """Samples that only the model gets right."""
    lost: int
    """Samples that only the base gets right."""
    n: int
    p: float
    p_holm: float
    """p adjusted by Holm's method over the tasks of the model."""


class ForcedPrefix(Result):
    """Accuracy of a model whose responses were forced to begin with ``prefix``."""

    prefix: str
    model: str
    accuracy: Accuracy

    @property
    def label(self) -> str:
        """The baseline in words, for tables and figures."""
        return f"{self.model}, forced to begin with {self.prefix}"


class PositionBias(Result):
    """How often a model chooses each position of the options (arXiv 2309.03882); a pair is one item under one order."""

    chosen: list[Number]
    """Share of pairs in which the chosen option is at each position."""
    right: list[Number]
    """Share of pairs in which the right option is at each position."""
    recall: list[Number]
    """Share of the pairs with the right option at a position in which it is chosen; NaN for a position without pairs."""
    recall_std: Number
    """Standard deviation of ``recall`` over positions (RStd)."""
    consistent: Number
    """Share of items for which every order gives the same option."""
    n_items: int
    n_pairs: int


class Engine(Result):
    """The engine outside mechprobe whose responses were scored, and how it was asked."""

    generation: Literal["endpoint", "import"]
    name: str
    """Server or library, for example ``vllm``; empty where a file of rollouts does not say."""
    version: str
    sampling: dict[str, dict[str, Any]]
    """Task → settings of the responses."""
    prompts: str
    """sha256 of the token ids of all prompts."""
    n_tokenized: int
    """Responses whose token ids were not given, so that the tokenizer made them from the text."""
    files: dict[str, str] = Field(default_factory=dict)
    """File of rollouts → sha256."""
    said: list[dict[str, Any]] = Field(default_factory=list)
    """What the files say of the engine, as it stands there."""
    base_url: str = ""
    models: dict[str, str] = Field(default_factory=dict)
    """Model → its name on the server."""
    prompt_as: str = ""
    """``ids`` or ``text``."""

    @property
    def sentence(self) -> str:
        """Where outcomes come from and where edits run, for everything that shows both."""
        name = " ".join(filter(None, [self.name or "an engine that the file does not name", self.version]))
        place = f"the server at {self.base_url}" if self.base_url else f"{' and '.join(self.files)}"
        return f"Outcomes come from {name} ({place}); clean and edited arms of interventions run with transformers."


class EvaluationSummary(Result):
    """The numbers of an evaluate stage."""

    tasks: list[str]
    accuracy: dict[str, Accuracy]
    """Model → task → accuracy."""
    unparsed: dict[str, dict[str, float]]
    """Model → task → share of responses in which the scorer finds no answer."""
    force_prefix: ForcedPrefix | None
    mcnemar: dict[str, dict[str, PairedTest]]
    """Tuned model → task → test against the base."""
    position_bias: dict[str, dict[str, PositionBias]] = Field(default_factory=dict)
    """Model → multiple-choice task → bias, for tasks whose options are shown in several orders."""
    engine: Engine | None = None
    """The engine whose responses were scored; None where transformers generated them here."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON value of the result; without ``position_bias`` where no task has one, and without ``engine`` for None."""
        value = super().to_dict()
        for name in ("position_bias", "engine"):
            if not value[name]:
                del value[name]
        return value


class HarnessMetric(Result):
    """One metric of lm-evaluation-harness on one task. None replaces whatever is not a finite number."""

    value: float | None
    stderr: float | None


class HarnessRun(Result):
    """What lm-evaluation-harness reports for one model. Metrics are keyed ``metric,filter``, as the harness does."""

    metrics: dict[str, dict[str, HarnessMetric]]
    """Task or group → metric."""
    n: dict[str, int]
    """Task → number of documents."""
    higher_is_better: dict[str, dict[str, bool | None]]
    values: dict[str, dict[str, list[float]]]
    """Task → metric → one number per document, for the metrics that have one."""
