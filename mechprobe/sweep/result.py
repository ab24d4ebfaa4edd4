"""Typed records: a cell (one model on one benchmark), and the table over all cells."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mechprobe.evals.result import Engine, SampledOutcomes
from mechprobe.formatting import bracketed, decimal, interval
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import Interval
from mechprobe.sweep.registry import Group, ScorerKind

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE, TABLE_FILE = "sweep.json", "table.md"
CELL_FILE, RESPONSES_FILE, ENGINE_FILE = "result.json", "responses.jsonl", "engine.json"


class BenchmarkInfo(Result):
    """What a benchmark is and how it was scored, the same for every model.

    Attributes:
        name: Its name; that of a stand-in begins with ``standin:``.
        title: Its name in tables; that of a stand-in says so.
        standin: Whether procedural items stand for the benchmark of this name.
        metric: What ``value`` is: ``avg@3``, ``accuracy``, ``ASR``, ``reward mean``, or a metric of lm-evaluation-harness.
        scorer: Who scored.
        scoring: The scorer in words: its rule, or the judge or model.
        source: Where responses or numbers come from.
        decoding: How responses were decoded, with the seed; what is known of it for finished results.
        items: sha256 of the items that all models were asked.
        n_items, n_draws: Items, and responses to each.
        share: Whether the metric is a share, which tables give in percent.
    """

    name: str
    title: str
    group: Group
    metric: str
    scorer: ScorerKind
    scoring: str
    higher_is_better: bool
    standin: bool
    source: str
    decoding: dict[str, Any]
    items: str
    n_items: int
    n_draws: int
    share: bool = True

    def text(self, cell: Interval | None, *, signed: bool = False) -> str:
        """A value, or a ``signed`` difference, with its interval as table cells have it."""
        if self.share:
            return interval(cell, signed=True) if signed else bracketed(cell)
        if cell is None:
            return bracketed(None)
        form = "{:+.3g}" if signed else "{:.3g}"
        ends = f" [{form.format(cell.low)}, {form.format(cell.high)}]" if cell.low == cell.low else ""
        return form.format(cell.value) + ends


class CellResult(Result):
    """One model on one benchmark.

    Attributes:
        value: The metric with its interval, clustered by item. Undecided responses are not in it.
        bounds: The metric if all undecided responses were the lowest, and the highest, that they can be; None where a rule
            decides every response, or where rewards have no bounds.
        undecided: Responses that a judge did not decide.
        cut: Share of responses that were cut at the limit or stopped inside their thinking; None where it is not known. A rule
            counts them as not right. Judges and reward models do not read them, and they are undecided.
        unparsed: Share of responses that ended by themselves and in which the rule finds no answer.
        finish: How responses ended → number.
        tokens_mean, tokens_median, thinking_mean: Lengths of responses and of their thinking, in tokens.
        repetition: Mean share of repeated 4-grams.
        ended: The metric over the responses that ended by themselves: what is left of a change once cut ones are left out.
        sampled: pass@k, majority, and accuracy against the token budget; None for rewards and finished results.
        metrics: Further metrics, for example the mean harmfulness, or those of lm-evaluation-harness.
        truncated: Prompts whose beginning lm-evaluation-harness dropped.
        values: Item → the metric of each response; None where it is undecided.
    """

    benchmark: BenchmarkInfo
    model: str
    value: IntervalNumbers
    bounds: tuple[Number, Number] | None = None
    undecided: int = 0
    cut: Number | None = None
    unparsed: Number | None = None
    finish: dict[str, int] = Field(default_factory=dict)
    tokens_mean: Number | None = None
    tokens_median: Number | None = None
    thinking_mean: Number | None = None
    repetition: Number | None = None
    ended: Number | None = None
    sampled: SampledOutcomes | None = None
    metrics: dict[str, IntervalNumbers] = Field(default_factory=dict)
    truncated: int = 0
    engine: Engine | None = None
    values: dict[str, list[float | None]] = Field(default_factory=dict)

    @property
    def per_item(self) -> dict[str, float]:
        """Item → mean over its decided responses; items without any are left out."""
        decided = {item: [value for value in row if value is not None] for item, row in self.values.items()}
        return {item: sum(row) / len(row) for item, row in decided.items() if row}

    @property
    def text(self) -> str:
        """The value as tables show it, with the bounds where responses are undecided and the share of cut ones."""
        text = self.benchmark.text(self.value)
        if self.undecided:
            shown = [
                decimal(100 * end if self.benchmark.share else end, 0 if self.benchmark.share else 2)
                for end in self.bounds or ()
            ]
            text += f" ({self.undecided} undecided" + (f": {shown[0]} to {shown[1]})" if shown else ")")
        if self.cut and self.cut > 0:
            text += f" ({100 * self.cut:.0f} % cut)" if self.cut >= 0.005 else " (< 1 % cut)"
        return text


class Comparison(Result):
    """A model against base on the same items.

    Attributes:
        difference: The metric minus that of base, over the items that both have, with its paired interval. For finished results
            without numbers of single documents, the interval is that of two independent samples.
        bounds: The smallest and the largest difference that undecided responses of both could make; None where there are none.
        win_rate: Reward models: probability that a response of the model has a higher reward than one of base to the same prompt,
            ties half, with its interval over prompts.
    """

    difference: IntervalNumbers
    bounds: tuple[Number, Number] | None = None
    win_rate: IntervalNumbers | None = None


class SafetyPoint(Result):
    """A model in the plane of reasoning and safety, against base, with bootstrap intervals over items.

    Attributes:
        reasoning_gain: Mean change of the reasoning benchmarks.
        attack_change: Change of the share of attacks that succeed.
        index: Asymmetry index, see `mechprobe.sweep.asymmetry`.
    """

    reasoning_gain: IntervalNumbers
    attack_change: IntervalNumbers
    index: IntervalNumbers


class SafetyContrast(SafetyPoint):
    """A model against one of another arm on the same items: the differences of reasoning, attack success and index.

    Attributes:
        model, against: The models; differences are the first minus the second.
        step: The step of both, or None for the last models of their arms.
    """

    model: str
    against: str
    step: int | None = None


class SafetyPath(Result):
    """The points of all models beside one safety benchmark, and the contrasts of arms.

    ``reasoning`` names the benchmarks of the other axis.
    """

    reasoning: list[str]
    points: dict[str, SafetyPoint]
    contrasts: list[SafetyContrast] = Field(default_factory=list)


class SweepResults(Result):
    """Everything in ``sweep.json``.

    Attributes:
        base: The model that the others are compared with.
        arms: Arm → its models in order of training, without base.
        order: Benchmarks in the order of the settings.
        steps: Model → training step, 0 for base; None where the name has none.
        benchmarks: Name → benchmark.
        cells: Benchmark → model → cell, without the values of items, which stand in the cell's own file.
        comparisons: Benchmark → model → comparison with base.
        safety: Safety benchmark → the path of the models, where there are benchmarks of reasoning beside it.
        files: Benchmark → model → file of the cell, relative to the folder of the cells.
        notes: What a reader should know, as sentences.
    """

    base: str
    arms: dict[str, list[str]]
    order: list[str]
    steps: dict[str, int | None]
    benchmarks: dict[str, BenchmarkInfo]
    cells: dict[str, dict[str, CellResult]]
    comparisons: dict[str, dict[str, Comparison]]
    files: dict[str, dict[str, str]]
    safety: dict[str, SafetyPath] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @classmethod
    def load(cls, path: Path | str) -> "SweepResults":
        """Read ``sweep.json``, or that of a stage folder."""
        path = Path(path)
        found = super().load(path / RESULT_FILE if path.is_dir() else path)
        assert isinstance(found, cls), "load of a Result gives its own class"
        return found

    @property
    def models(self) -> list[str]:
        """Base, then the models of each arm."""
        return list(dict.fromkeys([self.base, *(model for arm in self.arms.values() for model in arm)]))

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each benchmark and model."""
        from mechprobe.environment import require

        pandas = require("pandas", "A table as a frame")
        arm_of = {model: arm for arm, models in self.arms.items() for model in models}
        rows = [
            self._row(name, model, arm_of) for name in self.order for model in self.models if model in self.cells[name]
        ]
        return pandas.DataFrame(rows)

    def _row(self, name: str, model: str, arm_of: dict[str, str]) -> dict[str, Any]:
        info, cell, compared = self.benchmarks[name], self.cells[name][model], self.comparisons[name].get(model)
        low, high = cell.bounds or (None, None)
        names = ("undecided", "cut", "unparsed", "tokens_mean", "tokens_median", "thinking_mean", "repetition", "ended")
        row: dict[str, Any] = {"benchmark": name, "standin": info.standin, "group": info.group, "metric": info.metric}
        row |= {"higher_is_better": info.higher_is_better, "model": model}
        row |= {"arm": arm_of.get(model, ""), "step": self.steps.get(model), **cell.value._asdict()}
        row |= {"lowest": low, "highest": high, **{field: getattr(cell, field) for field in names}}
        for prefix, found in (
            ("difference", compared and compared.difference),
            ("win_rate", compared and compared.win_rate),
        ):
            if found:
                row |= {prefix: found.value, f"{prefix}_low": found.low, f"{prefix}_high": found.high}
        return row
