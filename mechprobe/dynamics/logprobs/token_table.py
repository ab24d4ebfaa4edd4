"""All response tokens of the traces as one table, and the bootstrap of whole prompts over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike

from mechprobe.dynamics.logprobs.classes import TokenClasses
from mechprobe.dynamics.logprobs.measure import token_starts
from mechprobe.dynamics.logprobs.traces import Trace
from mechprobe.statistics import Interval, cluster_draws

QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class TokenTable:
    """Every response token of the traces, one trace after another.

    Attributes:
        traces: The traces.
        names: Names of the classes.
        trace: Trace of each token.
        position: Place of each token in its response.
        ids: The tokens.
        classes: Class of each token.
        teacher: The teacher's log-probabilities; NaN where there is none.
    """

    traces: tuple[Trace, ...]
    names: tuple[str, ...]
    trace: Int[ndarray, " token"]
    position: Int[ndarray, " token"]
    ids: Int[ndarray, " token"]
    classes: Int[ndarray, " token"]
    teacher: Float[ndarray, " token"]

    @classmethod
    def of(cls, traces: Sequence[Trace], classes: TokenClasses, *, teacher: bool) -> "TokenTable":
        """The table of some traces; ``teacher`` says whether their teacher's values are those of these tokens."""
        lengths = [len(trace.response_ids) for trace in traces]
        values = [t.teacher if teacher and t.teacher else (np.nan,) * len(t.response_ids) for t in traces]
        return cls(
            tuple(traces),
            classes.names,
            np.repeat(np.arange(len(traces)), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
            np.concatenate([np.asarray(trace.response_ids, dtype=np.int64) for trace in traces]),
            np.concatenate([classes.of(trace.response_ids, trace.answer or None) for trace in traces]),
            np.concatenate([np.asarray(row, dtype=np.float64) for row in values]),
        )

    @cached_property
    def start(self) -> Int[ndarray, " trace_plus_1"]:
        """First token of each trace, followed by the number of tokens."""
        return token_starts(self.traces)

    def prompts_of(self, source: str) -> "Prompts":
        """The prompts of the traces of a source."""
        mine = np.array([trace.source == source for trace in self.traces])
        names = [trace.prompt_id for trace in self.traces]
        known = {name: index for index, name in enumerate(sorted({n for n, m in zip(names, mine, strict=True) if m}))}
        prompt = np.array([known.get(name, -1) if m else -1 for name, m in zip(names, mine, strict=True)])
        return Prompts(len(known), prompt, prompt[self.trace])


@dataclass(frozen=True)
class Prompts:
    """The prompts of one source.

    Attributes:
        n: Their number.
        of_trace: Prompt of each trace; −1 for traces of other sources.
        of_token: The same for each token.
    """

    n: int
    of_trace: Int[ndarray, " trace"]
    of_token: Int[ndarray, " token"]

    @property
    def tokens(self) -> Bool[ndarray, " token"]:
        """The tokens of the source."""
        return self.of_token >= 0

    def sums(self, values: Float[ndarray, " token"], group: Int[ndarray, " token"], n_groups: int) -> ndarray:
        """Sums ``[prompt group]`` over the tokens of the source that are in a group; others have −1."""
        chosen = self.tokens & (group >= 0)
        flat = np.bincount(
            self.of_token[chosen] * n_groups + group[chosen], weights=values[chosen], minlength=self.n * n_groups
        )
        return flat.reshape(self.n, n_groups)

    def trace_sums(self, values: Float[ndarray, " trace"]) -> Float[ndarray, " prompt"]:
        """Sums over the traces of the source."""
        chosen = self.of_trace >= 0
        return np.bincount(self.of_trace[chosen], weights=values[chosen], minlength=self.n)

    def weights(self, draws: int, seed: int) -> Float[ndarray, "draw prompt"]:
        """How often each prompt counts in each bootstrap draw; no draw for one prompt. All models share them."""
        return cluster_draws(np.arange(self.n), draws=draws, seed=[seed, 1])


def ratio(totals: ArrayLike, counts: ArrayLike) -> ndarray:
    """``totals / counts``, NaN where nothing is counted."""
    total, count = np.asarray(totals), np.asarray(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def ends(drawn: Float[ndarray, "draw *rest"]) -> tuple[ndarray, ndarray]:
    """The 2.5 % and 97.5 % quantiles over the draws that are finite; NaN without one."""
    if not len(drawn):
        return np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
    flat = drawn.reshape(len(drawn), -1)
    found = np.full((2, flat.shape[1]), np.nan)
    whole = np.isfinite(flat).all(axis=0)
    if whole.any():
        found[:, whole] = np.quantile(flat[:, whole], QUANTILES, axis=0)
    for column in np.flatnonzero(~whole & np.isfinite(flat).any(axis=0)):
        found[:, column] = np.quantile(flat[np.isfinite(flat[:, column]), column], QUANTILES)
    low, high = found.reshape(2, *drawn.shape[1:])
    return low, high


def interval(value: float, drawn: Float[ndarray, " draw"], n: int) -> Interval:
    """A value with the percentile interval of its draws."""
    (low,), (high,) = ends(drawn[:, None])
    return Interval(float(value), float(low), float(high), n)
