"""Typed results of the ``logprobs`` stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mechprobe.dynamics.order import LeadLag
from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.stage_folder import require_stage
from mechprobe.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE, TRACES_FILE, TABLE_FILE = "logprobs.json", "traces.json", "tokens/traces.safetensors"
BacktrackLabel = Literal["internalisation", "imitation", "no rise", "cannot be told"]


class LogprobRow(Result):
    """One number of one model in one source; `mechprobe.dynamics.logprobs.rows` defines the metrics.

    Attributes:
        by, group: What the tokens are divided by (``all``, ``class``, ``task``), and the part.
        reference: ``base`` or ``teacher`` for metrics that compare; empty for the others.
        n: Tokens, traces or bytes that are counted. ``n_prompts``: prompts that hold them, which the bootstrap resamples.
    """

    model: str
    source: str
    by: str
    group: str
    metric: str
    reference: str
    value: Number
    low: Number
    high: Number
    n: int
    n_prompts: int

    @property
    def interval(self) -> Interval:
        """The number with its ends and the number of prompts."""
        return Interval(self.value, self.low, self.high, self.n_prompts)


class Histogram(Result):
    """How many tokens have a Δ in each bin between ``edges``; the first and last bin hold what lies beyond them."""

    model: str
    source: str
    reference: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class ExcessRow(Result):
    """Mean Δ against base of a class over its matched controls, in one model; see `mechprobe.dynamics.logprobs.matching`.

    Attributes:
        matched: Share of the class tokens that have controls.
        n: Tokens of the class. ``n_controls``: control tokens of its strata.
    """

    model: str
    source: str
    group: str
    excess: IntervalNumbers
    matched: Number
    n: int
    n_controls: int


class ContrastRow(Result):
    """Difference in differences of the last models of two arms: excess of the first − excess of the second."""

    first: str
    second: str
    first_model: str
    second_model: str
    source: str
    group: str
    contrast: IntervalNumbers
    matched: Number
    n: int
    n_controls: int


class LearningRow(Result):
    """When a class reaches half of its final Δ in one arm; see `mechprobe.dynamics.logprobs.learning`.

    Attributes:
        steps: Step of each checkpoint, or 1, 2, 3... where ``spaced_by`` is ``checkpoints``.
        curve: Mean Δ against base at each checkpoint.
        gain: Its value at the last one.
        half_step: Where half of that is reached, between two checkpoints; None where ``untold`` says why it cannot be told.
    """

    arm: str
    source: str
    group: str
    steps: tuple[Number, ...]
    spaced_by: Literal["steps", "checkpoints"]
    curve: tuple[Number, ...]
    gain: IntervalNumbers
    half_step: IntervalNumbers | None
    untold: str
    n: int


class OrderRow(LeadLag):
    """Two classes in one arm, as `mechprobe.dynamics.order` has them; ``first_moved`` is empty where no order can be told."""

    arm: str
    source: str


class BacktrackRow(Result):
    """Words of the backtracking class in the generated responses of one model; see `mechprobe.dynamics.logprobs.backtracking`."""

    model: str
    words: int
    responses: int
    with_word: int
    per_1k: IntervalNumbers
    accuracy: IntervalNumbers
    right_with: IntervalNumbers
    right_without: IntervalNumbers
    difference: IntervalNumbers


class BacktrackVerdict(Result):
    """Imitation or internalisation in one arm, with the numbers that the label rests on."""

    arm: str
    first: str
    last: str
    label: BacktrackLabel
    reason: str
    frequency_change: IntervalNumbers
    accuracy_change: IntervalNumbers
    difference: IntervalNumbers


class SamplerRow(Result):
    """Largest and mean difference of a model's log-probabilities at a temperature from those that the sampler gave."""

    model: str
    temperature: Number
    n: int
    largest: Number
    mean: Number


class LogprobsResult(Result):
    """The result of `mechprobe.dynamics.log_probs`.

    Attributes:
        base: The model that Δ and r compare with.
        models: All models, base included.
        arms: Arm → its checkpoints in order.
        sources: Sources of the traces: models, or ``gold``.
        classes: Names of the token classes.
        n_traces: Number of traces; ``n_tokens`` their response tokens.
        teacher: Where the teacher's values come from; empty without a teacher.
        rows, histograms, excess, contrasts, learning, order, backtracking, verdicts, sampler: Flat tables.
        rules: Definitions of metrics and classes, in words.
        notes: What a reader should know.
    """

    folder: Path = Field(exclude=True)
    base: str
    models: tuple[str, ...]
    arms: dict[str, tuple[str, ...]]
    sources: tuple[str, ...]
    classes: tuple[str, ...]
    n_traces: int
    n_tokens: int
    teacher: str
    rows: tuple[LogprobRow, ...]
    histograms: tuple[Histogram, ...]
    excess: tuple[ExcessRow, ...]
    contrasts: tuple[ContrastRow, ...]
    learning: tuple[LearningRow, ...]
    order: tuple[OrderRow, ...]
    backtracking: tuple[BacktrackRow, ...]
    verdicts: tuple[BacktrackVerdict, ...]
    sampler: tuple[SamplerRow, ...]
    rules: dict[str, str]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"LogprobsResult({str(self.folder)!r}: {len(self.models)} models on {self.n_tokens:,} tokens of {self.n_traces:,} traces "
            f"of {', '.join(self.sources)})"
        )

    __str__ = __repr__

    def find(self, **fields: Any) -> list[LogprobRow]:
        """The rows with the given fields, such as ``model="rl", metric="delta", by="class"``; without ``by`` those of ``all``."""
        wanted = {"by": "all", **fields}
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items())]

    def interval(
        self, model: str, metric: str, *, source: str, reference: str = "", by: str = "all", group: str = "all"
    ) -> Interval:
        """One number with its interval.

        Raises:
            ArtifactError: There is no such row.
        """
        found = self.find(model=model, metric=metric, source=source, reference=reference, by=by, group=group)
        if not found:
            raise ArtifactError(
                f"{self.folder} has no {metric} of {model} against '{reference}' in {source}, {by} {group}; `find` lists rows."
            )
        return found[0].interval

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a table; the other tables have the same form."""
        return require("pandas", "A table of log-probabilities").DataFrame([row.to_dict() for row in self.rows])

    def tokens(self) -> "pd.DataFrame":
        """One row per response token.

        Columns are trace, prompt, task, source, position, id, token class, the teacher's value, and ``log_prob.<model>``,
        ``entropy.<model>`` and ``rank.<model>`` of every model.
        """
        from safetensors.numpy import load_file

        pandas = require("pandas", "A table of tokens")
        described, arrays = read_json(self.folder / TRACES_FILE), load_file(self.folder / TABLE_FILE)
        trace = arrays.pop("trace")
        columns: dict[str, Any] = {
            name: np.array([entry[key] for entry in described])[trace]
            for name, key in (("trace", "id"), ("prompt", "prompt_id"), ("task", "task"), ("source", "source"))
        }
        columns |= {
            "position": arrays["position"],
            "id": arrays["id"],
            "token_class": np.array(self.classes)[arrays["class"]],
        }
        columns["teacher"] = arrays["teacher"]
        for model in self.models:
            own = load_file(self.folder / f"tokens/{model}.safetensors")
            columns |= {f"{name}.{model}": own[name] for name in ("log_prob", "entropy", "rank")}
        return pandas.DataFrame(columns)

    @classmethod
    def load(cls, path: Path | str) -> "LogprobsResult":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "logprobs")
        return cls.checked({**read_json(folder / RESULT_FILE), "folder": folder}, folder / RESULT_FILE)
