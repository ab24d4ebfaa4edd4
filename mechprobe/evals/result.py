"""Typed record of ``summary.json``, which the evaluate stage writes and the command line and the report read."""

from typing import Any, Literal, NamedTuple

from pydantic import Field

from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import Interval

Accuracy = dict[str, Interval]
"""Task → share of right responses with its 95 % interval and the number of samples, see `mechprobe.statistics.share_interval`."""


class PairedTest(Result):
    """Exact test of one model against the base on the samples of one task.

    It is McNemar's test, or with several responses to each sample the sign-flip test over samples
    (`mechprobe.statistics.sign_flip_exact`), which it equals for one response.
    """

    gained: int
    """Samples that only the model gets right; with several responses, those whose share of right responses is higher."""
    lost: int
    """Samples that only the base gets right; with several responses, those whose share of right responses is lower."""
    n: int
    p: float
    p_holm: float
    """p adjusted by Holm's method over the tasks of the model."""
    difference: IntervalNumbers | None = None
    """Difference of the shares of right responses, with its interval over samples; None for one response to each sample."""


class BudgetPoint(NamedTuple):
    """Accuracy at a token budget, as shares of all responses."""

    tokens: int
    right: float
    """Responses that are right and end within the budget."""
    ended: float
    """Responses that end within the budget."""


class SampledOutcomes(Result):
    """What several responses to each sample say about one model on one task; intervals are clustered by sample."""

    n: int
    """Responses to each sample."""
    pass_at: dict[int, IntervalNumbers]
    """k → pass@k, for the powers of 2 up to ``n`` (`mechprobe.evals.sampled.pass_at_k`)."""
    majority: IntervalNumbers
    """maj@n, the share of samples whose most frequent answer is right; a tie counts as its expected value."""
    repetition: Number
    """Mean share of repeated 4-grams of tokens in a response; NaN if no response has 4 tokens."""
    budgets: list[BudgetPoint]
    """Accuracy by token budget, ascending."""


class ForcedPrefix(Result):
    """Accuracy of a model whose responses were forced to begin with ``prefix``."""

    prefix: str
    model: str
    accuracy: Accuracy
    cut: dict[str, float] = Field(default_factory=dict)
    """Task → share of responses that were cut at the limit or are unfinished."""
    unparsed: dict[str, float] = Field(default_factory=dict)
    """Task → share of responses that ended by themselves and in which the scorer finds no answer."""

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
    """Model → task → share of responses that ended by themselves and in which the scorer finds no answer."""
    cut: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Model → task → share of responses that were cut at the limit or stopped inside their thinking; none of them is scored."""
    response_tokens: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Model → task → mean length of the generated responses in tokens; no entry where only log-likelihoods were compared."""
    force_prefix: ForcedPrefix | None
    mcnemar: dict[str, dict[str, PairedTest]]
    """Tuned model → task → test against the base."""
    position_bias: dict[str, dict[str, PositionBias]] = Field(default_factory=dict)
    """Model → multiple-choice task → bias, for tasks whose options are shown in several orders."""
    engine: Engine | None = None
    """The engine whose responses were scored; None where transformers generated them here."""
    sampled: dict[str, dict[str, SampledOutcomes]] = Field(default_factory=dict)
    """Model → task → what several responses say, for tasks that are sampled more than once; ``accuracy`` is then avg@n."""

    def _in_short(self) -> str:
        return f"{', '.join(self.accuracy)} on {', '.join(self.tasks)}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON value of the result, without the parts that only some tasks have and none has here."""
        value = super().to_dict()
        for part in ("position_bias", "sampled", "engine"):
            if not value[part]:
                del value[part]
        for tests in value["mcnemar"].values():
            for test in tests.values():
                if test["difference"] is None:
                    del test["difference"]
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
