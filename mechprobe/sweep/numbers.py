"""From the responses of one model to its numbers on a benchmark, and from two models to their comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean, median
from typing import Any

import numpy as np

from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.sampled import repetition, sampled_outcomes
from mechprobe.evals.summary import is_unparsed
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome
from mechprobe.statistics import (
    Interval,
    bootstrap_mean,
    clustered_difference,
    clustered_interval,
    paired_bootstrap,
    paired_change,
    share_interval,
)
from mechprobe.sweep.result import BenchmarkInfo, CellResult, Comparison

Rows = Mapping[str, Sequence[float | None]]
"""Item → a number for each response; None where it is undecided."""


def rule_cell(info: BenchmarkInfo, task: Task, model: str, outcomes: Sequence[Outcome], **rest: Any) -> CellResult:
    """The cell of a benchmark that a rule scores; a cut response is not right."""
    rows = by_item(outcomes, [float(outcome.outcome == "right") for outcome in outcomes])
    return CellResult(
        benchmark=info,
        model=model,
        value=metric_interval(rows, share=True),
        sampled=_sampled(task, outcomes) if outcomes[0].finish else None,
        unparsed=fmean(map(is_unparsed, outcomes)),
        **_lengths(outcomes),
        **_ended(outcomes, rows),
        values=rows,
        **rest,
    )


def judged_cell(
    info: BenchmarkInfo,
    task: Task,
    model: str,
    outcomes: Sequence[Outcome],
    verdicts: Sequence[float | None],
    config: JudgeConfig,
    refused: Sequence[bool | None] | None = None,
    **rest: Any,
) -> CellResult:
    """The cell of a benchmark that a judge scores: the share of decided responses that count, and its bounds.

    ``refused`` adds the share of the responses that the rule finds to refuse.
    """
    counted = [None if verdict is None else float(config.counts(verdict)) for verdict in verdicts]
    rows = by_item(outcomes, counted)
    metrics = {}
    if config.reads == "score":
        metrics["mean score"] = metric_interval(by_item(outcomes, verdicts), share=False)
    if refused is not None:
        flags = [None if flag is None else float(flag) for flag in refused]
        metrics["refused"] = metric_interval(by_item(outcomes, flags), share=True)
    undecided = counted.count(None)
    return CellResult(
        benchmark=info,
        model=model,
        value=metric_interval(rows, share=True),
        bounds=_bounds(rows, 0.0, 1.0) if undecided else None,
        undecided=undecided,
        sampled=_sampled(task, decided(outcomes, counted)),
        metrics=metrics,
        **_lengths(outcomes),
        **_ended(outcomes, rows),
        values=rows,
        **rest,
    )


def reward_cell(
    info: BenchmarkInfo,
    model: str,
    outcomes: Sequence[Outcome],
    rewards: Sequence[float | None],
    seed: int,
    **rest: Any,
) -> CellResult:
    """The cell of a benchmark that a reward model scores: the mean raw logit of the responses that ended by themselves."""
    rows = by_item(outcomes, rewards)
    return CellResult(
        benchmark=info,
        model=model,
        value=metric_interval(rows, share=False, seed=seed),
        undecided=list(rewards).count(None),
        **_lengths(outcomes),
        values=rows,
        **rest,
    )


def by_item(outcomes: Sequence[Outcome], numbers: Sequence[float | None]) -> dict[str, list[float | None]]:
    """Numbers of responses by item, in the order of the draws."""
    rows: dict[str, list[float | None]] = {}
    for outcome, value in zip(outcomes, numbers, strict=True):
        rows.setdefault(outcome.sample_id, []).append(value)
    return rows


def metric_interval(rows: Rows, *, share: bool, seed: int = 0) -> Interval:
    """Mean over items of the mean of the decided responses; ``n`` counts the items with any.

    A share has `share_interval` where every response is decided and `clustered_interval` else; other numbers have a bootstrap
    over items.
    """
    known = [[value for value in row if value is not None] for row in rows.values()]
    known = [row for row in known if row]
    if not share:
        return bootstrap_mean([fmean(row) for row in known], seed=seed)
    if len(known) == len(rows) and rows and len({len(row) for row in known}) == 1 and _complete(rows):
        return share_interval(np.array(known, dtype=bool))
    return clustered_interval([fmean(row) for row in known])


def _complete(rows: Rows) -> bool:
    """Whether every number is decided and 0 or 1."""
    return all(value in (0.0, 1.0) for row in rows.values() for value in row)


def _bounds(rows: Rows, low: float, high: float) -> tuple[float, float]:
    """The mean if every undecided number were ``low``, and if it were ``high``."""
    low_mean, high_mean = (
        fmean(fmean(end if value is None else value for value in row) for row in rows.values()) for end in (low, high)
    )
    return low_mean, high_mean


def decided(outcomes: Sequence[Outcome], counted: Sequence[float | None]) -> list[Outcome]:
    """Outcomes as a judge decided them: right where the response counts."""
    names = {None: "unparsed", 0.0: "wrong", 1.0: "right"}
    return [replace(outcome, outcome=names[value]) for outcome, value in zip(outcomes, counted, strict=True)]


def _sampled(task: Task, outcomes: Sequence[Outcome]) -> Any:
    problems: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        problems.setdefault(outcome.sample_id, []).append(outcome)
    return sampled_outcomes(task, list(problems.values()))


def _lengths(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How responses ended, how long they are, and how much they repeat themselves; nothing where none was generated."""
    made = [outcome for outcome in outcomes if outcome.finish]
    if not made:
        return {}
    tokens = [outcome.n_response_tokens for outcome in made]
    repeated = [share for share in (repetition(outcome.response_ids) for outcome in made) if share is not None]
    names = [outcome.finish for outcome in made]
    return {
        "cut": fmean(outcome.cut for outcome in made),
        "finish": {name: names.count(name) for name in ("stop", "length", "unfinished")},
        "tokens_mean": fmean(tokens),
        "tokens_median": float(median(tokens)),
        "thinking_mean": fmean(outcome.n_thinking_tokens for outcome in made),
        "repetition": fmean(repeated) if repeated else None,
    }


def _ended(outcomes: Sequence[Outcome], rows: Rows) -> dict[str, Any]:
    """The mean over the decided responses that ended by themselves."""
    flat = [value for row in rows.values() for value in row]
    ended = [value for outcome, value in zip(outcomes, flat, strict=True) if value is not None and not outcome.cut]
    return {"ended": fmean(ended) if ended else None}


def compare(base: CellResult, cell: CellResult, *, seed: int) -> Comparison:
    """A model against base, over the items on which both have a decided response."""
    before, after = base.per_item, cell.per_item
    shared = [item for item in after if item in before]
    first, second = [before[item] for item in shared], [after[item] for item in shared]
    rows = [source.values[item] for source in (base, cell) for item in shared]
    if not cell.benchmark.share:
        difference = paired_bootstrap(first, second, seed=seed)
    elif rows and len({len(row) for row in rows}) == 1 and all(value in (0.0, 1.0) for row in rows for value in row):
        start, end = (np.array([source.values[item] for item in shared], dtype=bool) for source in (base, cell))
        difference = paired_change(start, end)
    else:
        difference = clustered_difference(first, second)
    if not shared:  # lm-evaluation-harness gave no number for each document
        difference = _unpaired(base.value, cell.value)
    win_rate = _win_rate(base, cell, shared) if cell.benchmark.scorer == "reward_model" else None
    return Comparison(difference=difference, bounds=_difference_bounds(base, cell), win_rate=win_rate)


def _unpaired(base: Interval, value: Interval) -> Interval:
    """The difference of two values as if of independent samples; wider than a paired interval on the same documents."""
    half = np.hypot(base.high - base.low, value.high - value.low) / 2
    difference = value.value - base.value
    return Interval(difference, difference - half, difference + half, min(base.n, value.n))


def _difference_bounds(base: CellResult, cell: CellResult) -> tuple[float, float] | None:
    """The ends of the difference over all that undecided responses could be; None if every response is decided."""
    if base.bounds is None and cell.bounds is None:
        return None
    lows, highs = zip(*(each.bounds or (each.value.value,) * 2 for each in (base, cell)), strict=True)
    return lows[1] - highs[0], highs[1] - lows[0]


def _win_rate(base: CellResult, cell: CellResult, shared: Sequence[str]) -> Interval:
    """Mean over prompts of the share of pairs of a response and one of base in which it has the higher reward; ties half."""
    shares = []
    for item in shared:
        mine, other = ([value for value in source.values[item] if value is not None] for source in (cell, base))
        shares.append(fmean((a > b) + (a == b) / 2 for a, b in product(mine, other)))
    return clustered_interval(shares)
