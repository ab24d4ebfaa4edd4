"""The flat table: means of every model over the tokens of a source, all together, by class and by task, with intervals.

With y a response token, Δ = log p(y) − log p_ref(y) for the reference base or teacher, and r = exp(clamp(Δ, −c, c)):

* log_prob, entropy: means over tokens, in nats. rank_1, rank_over_10: shares of tokens of rank 1, and of a rank above 10.
* delta, ratio: means of Δ and of r. clip_low, clip_high: shares of tokens with r < 1 − low and with r > 1 + high.
* sequence_ratio: mean over traces of exp(clamp(mean Δ of the trace)).
* bits_per_byte: −Σ log p over the text, without end tokens, / (log 2 × bytes of text).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.result import Histogram, LogprobRow
from mechprobe.dynamics.logprobs.token_table import Prompts, TokenTable, ends, ratio
from mechprobe.dynamics.logprobs.traces import Trace

METRICS = {
    "log_prob": "mean log-probability of the response tokens, in nats",
    "entropy": "mean entropy of the next-token distribution, in nats",
    "rank_1": "share of tokens that are the most probable one",
    "rank_over_10": "share of tokens of a rank above 10",
    "bits_per_byte": "−Σ log p over the text of the responses / (log 2 · bytes), without end tokens",
    "delta": "mean of Δ = log p − log p of the reference, in nats",
    "ratio": "mean of r = exp(clamp(Δ, ±logprobs.clamp))",
    "clip_low": "share of tokens with r < 1 − low (logprobs.clip)",
    "clip_high": "share of tokens with r > 1 + high (logprobs.clip)",
    "sequence_ratio": "mean over traces of exp(clamp(mean Δ of the trace))",
}
EDGES = (-20.0, -10.0, -5.0, -2.0, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Edges of the histogram of Δ, in nats; the first and last bin hold what lies beyond."""
BASE, TEACHER = "base", "teacher"


@dataclass(frozen=True)
class SourceTable:
    """The tokens of one source with the groups and the bootstrap draws of its table.

    Attributes:
        name: The source.
        prompts: Its prompts.
        weights: Bootstrap draws of them.
        groups: ``(by, group)`` of each kind of group, and the group of every token.
    """

    name: str
    table: TokenTable
    prompts: Prompts
    weights: ndarray
    groups: tuple[tuple[str, tuple[str, ...], ndarray], ...]

    @classmethod
    def of(cls, table: TokenTable, name: str, config: LogprobsConfig) -> "SourceTable":
        """The source of a table."""
        prompts = table.prompts_of(name)
        tasks = tuple(sorted({trace.task for trace in table.traces if trace.source == name and trace.task}))
        task = np.array([tasks.index(trace.task) if trace.task in tasks else -1 for trace in table.traces])
        groups = (
            ("all", ("all",), np.zeros(len(table.ids), dtype=np.int64)),
            ("class", table.names, table.classes),
            ("task", tasks, task[table.trace]),
        )
        return cls(name, table, prompts, prompts.weights(config.draws, config.seed), groups)


@dataclass(frozen=True)
class _Means:
    """Totals and counts ``[prompt group metric]``."""

    metrics: tuple[tuple[str, str], ...]
    totals: ndarray
    counts: ndarray


def model_rows(
    source: SourceTable,
    model: str,
    values: Mapping[str, ndarray],
    references: Mapping[str, ndarray],
    config: LogprobsConfig,
) -> Iterator[LogprobRow]:
    """All rows of one model in one source.

    Args:
        source: The source.
        model: Name of the model.
        values: ``log_prob``, ``entropy`` and ``rank`` of every token of the table.
        references: Log-probabilities of every token under ``base`` and ``teacher``; NaN where there is none.
        config: Settings.
    """
    columns = _columns(values, references, config)
    for by, names, group in source.groups:
        if not names:
            continue
        means = _token_means(source, columns, group, len(names))
        yield from _rows(source, model, by, names, means)
    yield from _rows(source, model, "all", ("all",), _trace_means(source, values["log_prob"], references, config))


def _columns(
    values: Mapping[str, ndarray], references: Mapping[str, ndarray], config: LogprobsConfig
) -> dict[tuple[str, str], ndarray]:
    """Metric and reference → values of every token; NaN where a token does not count."""
    rank = values["rank"]
    found = {
        ("log_prob", ""): values["log_prob"],
        ("entropy", ""): values["entropy"],
        ("rank_1", ""): (rank == 1).astype(float),
        ("rank_over_10", ""): (rank > 10).astype(float),
    }
    for name, reference in references.items():
        delta = values["log_prob"] - reference
        r = np.exp(np.clip(delta, -config.clamp, config.clamp))
        missing = np.isnan(delta)
        found[("delta", name)] = delta
        found[("ratio", name)] = r
        found[("clip_low", name)] = np.where(missing, np.nan, r < 1 - config.clip[0])
        found[("clip_high", name)] = np.where(missing, np.nan, r > 1 + config.clip[1])
    return found


def _token_means(
    source: SourceTable, columns: Mapping[tuple[str, str], ndarray], group: ndarray, n_groups: int
) -> _Means:
    totals, counts = [], []
    for values in columns.values():
        known = np.isfinite(values)
        totals.append(source.prompts.sums(np.where(known, values, 0.0), group, n_groups))
        counts.append(source.prompts.sums(known.astype(float), group, n_groups))
    return _Means(tuple(columns), np.stack(totals, axis=-1), np.stack(counts, axis=-1))


def _trace_means(
    source: SourceTable, log_prob: ndarray, references: Mapping[str, ndarray], config: LogprobsConfig
) -> _Means:
    """Sequence ratios by trace, and bits per byte; the teacher's own bits stand with the reference ``teacher``."""
    table, traces = source.table, source.table.traces
    n_bytes = np.array([trace.n_bytes for trace in traces], dtype=float)
    is_text = table.position < np.array([trace.n_text for trace in traces])[table.trace]
    bits = -np.bincount(table.trace, weights=log_prob * is_text, minlength=len(traces)) / np.log(2)
    found = {("bits_per_byte", ""): (bits, n_bytes)}
    own = np.array([-sum(_of_text(trace, config.compare)) / np.log(2) if trace.teacher else 0.0 for trace in traces])
    has = np.array([bool(trace.teacher) for trace in traces])
    if has.any():
        found[("bits_per_byte", TEACHER)] = (np.where(has, own, 0.0), np.where(has, n_bytes, 0.0))
    for name, reference in references.items():
        delta = log_prob - reference
        known = np.isfinite(delta)
        n = np.bincount(table.trace, weights=known, minlength=len(traces))
        mean = ratio(np.bincount(table.trace, weights=np.where(known, delta, 0.0), minlength=len(traces)), n)
        r = np.where(n > 0, np.exp(np.clip(np.nan_to_num(mean), -config.clamp, config.clamp)), 0.0)
        found[("sequence_ratio", name)] = (r, (n > 0).astype(float))
    totals = np.stack([source.prompts.trace_sums(total) for total, _ in found.values()], axis=-1)
    counts = np.stack([source.prompts.trace_sums(count) for _, count in found.values()], axis=-1)
    return _Means(tuple(found), totals[:, None], counts[:, None])


def _of_text(trace: Trace, compare: str) -> tuple[float, ...]:
    """The teacher's values of the text; all of them where it has another tokenizer, so that its end token is unknown."""
    return trace.teacher[: trace.n_text] if compare == "tokens" else trace.teacher


def _rows(source: SourceTable, model: str, by: str, names: tuple[str, ...], means: _Means) -> Iterator[LogprobRow]:
    shape = means.totals.shape
    values = ratio(means.totals.sum(axis=0), means.counts.sum(axis=0))
    flat = [part.reshape(shape[0], -1) for part in (means.totals, means.counts)]
    drawn = ratio(*(source.weights @ part for part in flat)).reshape(-1, *shape[1:])
    low, high = ends(drawn)
    n, n_prompts = means.counts.sum(axis=0), (means.counts > 0).sum(axis=0)
    for g, group in enumerate(names):
        for m, (metric, reference) in enumerate(means.metrics):
            if n_prompts[g, m]:
                yield LogprobRow(
                    model=model, source=source.name, by=by, group=group, metric=metric, reference=reference,
                    value=float(values[g, m]), low=float(low[g, m]), high=float(high[g, m]), n=int(n[g, m]),
                    n_prompts=int(n_prompts[g, m]),
                )  # fmt: skip


def histograms(
    source: SourceTable, model: str, log_prob: ndarray, references: Mapping[str, ndarray]
) -> Iterator[Histogram]:
    """How many tokens of a source have a Δ in each bin, by reference."""
    for name, reference in references.items():
        delta = (log_prob - reference)[source.prompts.tokens]
        delta = delta[np.isfinite(delta)]
        if len(delta):
            counts = np.bincount(np.searchsorted(EDGES, delta, side="right"), minlength=len(EDGES) + 1)
            yield Histogram(
                model=model, source=source.name, reference=name, edges=EDGES, counts=tuple(map(int, counts))
            )
