"""Typed records of what the ``harness`` stage writes to ``results.json``, and their table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from mechprobe.display import columns_of
from mechprobe.environment import require
from mechprobe.formatting import listing, markdown_cell
from mechprobe.interventions.result import EditedSet, RelativeChanges, named_row
from mechprobe.interventions.result_rows import ConditionRow
from mechprobe.results import IntervalNumbers, Result

if TYPE_CHECKING:
    import pandas as pd


class MetricCell(Result):
    """One metric of the harness on one task, under one condition.

    Attributes:
        value, stderr: The metric and its standard error; None where the harness gives no finite number.
        n: Documents; None for a group of tasks.
        change: Change against the clean host. The paired bootstrap interval is NaN unless the metric is a mean over documents.
            None for clean rows, and where one of the two values is missing.
        random_mean, n_random: Mean change of the random sets under the same edit and their number, where random sets ran.
        p_random: Randomization p-value against them, where the harness says which direction is better.
    """

    value: float | None
    stderr: float | None
    n: int | None
    change: IntervalNumbers | None
    random_mean: float | None = None
    n_random: int | None = None
    p_random: float | None = None


class HarnessCondition(ConditionRow):
    """The harness' metrics under one condition, clean, selected or random: task → ``metric,filter`` → cell."""

    metrics: dict[str, dict[str, MetricCell]]


class HarnessResults(EditedSet):
    """Everything in ``results.json`` of a ``harness`` stage.

    ``truncated`` maps tasks to the number of documents whose prompt did not fit the context, so that the harness dropped its
    beginning.
    ``note`` says what the numbers are and are not, ``lm_eval`` is the version of lm-evaluation-harness, and ``tasks`` are the
    tasks and groups, sorted. ``n`` maps tasks to documents, and ``higher_is_better`` maps their metrics to None where the
    harness does not say.
    """

    note: str
    lm_eval: str
    tasks: list[str]
    n: dict[str, int]
    truncated: dict[str, int] = Field(default_factory=dict)
    higher_is_better: dict[str, dict[str, bool | None]]
    conditions: list[HarnessCondition]
    changes: RelativeChanges

    def _in_short(self) -> str:
        return f"{len(self.conditions)} conditions of {self.rule_of_features} at {self.site} on {', '.join(self.tasks)}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per condition, task and metric: the value, its standard error, and the change against the clean host."""
        nothing = (float("nan"),) * 3
        rows = [
            {"model": row.model, "edit": row.edit, "features": row.features, "task": task, "metric": key, "n": cell.n}
            | {"value": cell.value, "stderr": cell.stderr, **columns_of("change", cell.change or nothing)}
            for row in self.conditions
            for task, metrics in row.metrics.items()
            for key, cell in metrics.items()
        ]
        return require("pandas", "The table of metrics").DataFrame(rows)

    def condition(self, name: str) -> HarnessCondition:
        """The record of one condition, for example ``rl|ablate|top50``; `ConfigError` where there is none."""
        return named_row(self.conditions, name)


def truncated_sentence(truncated: Mapping[str, int], n: Mapping[str, int] | None = None) -> str:
    """How many documents lose the beginning of their prompt; empty if none does. ``n`` holds the numbers of documents."""
    counts = [f"{count} of {n[task]} in {task}" if n else f"{count} in {task}" for task, count in truncated.items()]
    if not counts:
        return ""
    return (
        f"Truncated prompts: with the response, {listing(counts)} are longer than the context, so lm-eval drops their beginning. "
        "Lower max_gen_toks or num_fewshot, or leave these documents out."
    )


def harness_table(results: HarnessResults) -> tuple[list[str], dict[str, dict[str, str]]]:
    """``(columns, rows)`` with a column per task and metric; random sets have no rows."""
    first = results.conditions[0].metrics
    columns = [f"{task} {_metric_title(key)}" for task, metrics in first.items() for key in metrics]
    rows = {
        f"{row.model}  {row.edit}  {row.features}": {
            f"{task} {_metric_title(key)}": _text(cell)
            for task, metrics in row.metrics.items()
            for key, cell in metrics.items()
        }
        for row in results.conditions
        if row.set_kind != "random"
    }
    return columns, rows


def _metric_title(key: str) -> str:
    """``acc`` for ``acc,none``, and ``exact_match (strict)`` for ``exact_match,strict``."""
    name, _, filter_name = key.partition(",")
    return name if filter_name in ("", "none") else f"{name} ({filter_name})"


def _text(cell: MetricCell) -> str:
    """One cell as in ``0.438 ± 0.063  -0.310 [-0.440, -0.190]``, with the mean of the random sets where they ran."""
    if cell.value is None:
        return "-"
    text = f"{cell.value:.3f}" + ("" if cell.stderr is None else f" ± {cell.stderr:.3f}")
    if cell.change is None:
        return text
    value, low, high, _ = cell.change
    text += f"  {value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else "")
    if cell.random_mean is not None:
        p = "" if cell.p_random is None else f", p = {cell.p_random:.3f}"
        text += f" ({cell.n_random} random {cell.random_mean:+.3f}{p})"
    return text


def markdown_table(results: HarnessResults) -> str:
    """The table as Markdown, with the number of documents and a note on what the numbers are."""
    columns, rows = harness_table(results)
    n = ", ".join(f"{markdown_cell(task)} {count}" for task, count in results.n.items())
    lines = [
        f"lm-eval {results.lm_eval} at {markdown_cell(results.site)}; documents: {n}. Cells give the value ± standard error, then "
        "the change against the clean model with its paired 95 % bootstrap interval.",
        "",
        "| condition | " + " | ".join(map(markdown_cell, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, cells in rows.items():
        lines.append("| " + " | ".join([markdown_cell(label), *(cells.get(c, "-") for c in columns)]) + " |")
    truncated = markdown_cell(truncated_sentence(results.truncated, results.n))
    choice = results.readout_choice.sentence if results.readout_choice else ""
    notes = [text for text in (truncated, results.silent.sentence, choice, results.note) if text]
    return "\n".join([*lines, "", "\n\n".join(notes), ""])
