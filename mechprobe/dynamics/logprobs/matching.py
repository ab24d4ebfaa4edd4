"""Class tokens against control tokens that are as frequent and stand as late in the response, and the contrast of two arms.

Controls are the tokens of the classes digits, operators and other in the same traces. Tokens are matched by coarsened exact
matching (Iacus, King & Porro 2012): a stratum is a part of the response (``logprobs.position_bins`` equal parts) and a power of four
of the token's count in the traces of the source. With n_s class tokens in stratum s, and means over class and control tokens:

    excess = Σ_s n_s (mean of class_s − mean of controls_s) / Σ_s n_s,

over the strata that hold class tokens and at least 5 control tokens; ``matched`` is their share of the class
tokens. The contrast of two arms is excess of the one − excess of the other, a difference in differences on the same tokens, so that
whatever moves all tokens of that kind alike cancels. The choice of strata is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.result import ContrastRow, ExcessRow
from mechprobe.dynamics.logprobs.rows import SourceTable
from mechprobe.dynamics.logprobs.token_table import interval, ratio

CONTROLS = ("digits", "operators", "other")
_ALWAYS_LAST = "special"
"""End tokens, for which no control stands as late."""
_FREQUENCY = 2
"""A stratum holds tokens whose counts differ by at most 2**2."""
LEAST_CONTROLS = 5
"""Fewest control tokens of a stratum that is used."""


@dataclass(frozen=True)
class Strata:
    """The matched tokens of a source.

    Attributes:
        source: The source.
        of_token: Stratum of every token; −1 for other sources.
        n: Number of strata.
        counts: Tokens ``[prompt class stratum]``.
    """

    source: SourceTable
    of_token: ndarray
    n: int
    counts: Float[ndarray, "prompt class stratum"]

    @classmethod
    def of(cls, source: SourceTable, config: LogprobsConfig) -> "Strata":
        """The strata of a source."""
        table, mine = source.table, source.prompts.tokens
        _, place, count = np.unique(table.ids[mine], return_inverse=True, return_counts=True)
        frequency = np.floor(np.log2(count[place]) / _FREQUENCY).astype(np.int64)
        length = np.diff(table.start)[table.trace][mine]
        part = table.position[mine] * config.position_bins // length
        known, stratum = np.unique(frequency * config.position_bins + part, return_inverse=True)
        of_token = np.full(len(table.ids), -1)
        of_token[mine] = stratum
        return cls(source, of_token, len(known), _cells(source, of_token, len(known), np.ones(len(table.ids))))

    @cached_property
    def usable(self) -> Bool[ndarray, " stratum"]:
        """Strata with enough control tokens."""
        return self._controls >= LEAST_CONTROLS

    @cached_property
    def _controls(self) -> Float[ndarray, " stratum"]:
        """Control tokens of each stratum."""
        columns = [self.source.table.names.index(name) for name in CONTROLS]
        return self.counts[:, columns].sum(axis=(0, 1))

    def n_controls(self, name: str) -> int:
        """Control tokens in the strata that a class uses."""
        own = self.counts[:, self.source.table.names.index(name)].sum(axis=0)
        return int(self._controls[self.usable & (own > 0)].sum())

    def sums(self, delta: Float[ndarray, " token"]) -> Float[ndarray, "prompt class stratum"]:
        """Sums of a value of every token."""
        return _cells(self.source, self.of_token, self.n, delta)

    def excess(
        self, name: str, counts: Float[ndarray, "*draw class stratum"], sums: Float[ndarray, "*draw class stratum"]
    ) -> tuple[ndarray, ndarray]:
        """Excess of a class over its controls, and the matched share of its tokens, from totals over prompts."""
        names = self.source.table.names
        own, others = names.index(name), [names.index(control) for control in CONTROLS]
        n, n_control = counts[..., own, :], counts[..., others, :].sum(axis=-2)
        difference = ratio(sums[..., own, :], n) - ratio(sums[..., others, :].sum(axis=-2), n_control)
        both = (n > 0) & (n_control > 0) & self.usable
        weight = np.where(both, n, 0.0)
        total = weight.sum(axis=-1)
        value = ratio((np.where(both, difference, 0.0) * weight).sum(axis=-1), total)
        return value, ratio(total, n.sum(axis=-1))

    def classes(self) -> list[str]:
        """Classes of the source that have tokens and can have controls."""
        present = zip(self.source.table.names, self.counts.sum(axis=(0, 2)), strict=True)
        return [name for name, n in present if n and name not in (*CONTROLS, _ALWAYS_LAST)]


def _cells(source: SourceTable, stratum: ndarray, n: int, values: ndarray) -> ndarray:
    names = source.table.names
    group = np.where(stratum >= 0, source.table.classes * n + stratum, -1)
    return source.prompts.sums(values, group, len(names) * n).reshape(source.prompts.n, len(names), n)


@dataclass(frozen=True)
class _Excess:
    """Excess of every class in one model: the value and its draws."""

    value: dict[str, float]
    matched: dict[str, float]
    drawn: dict[str, ndarray]


def _of_model(strata: Strata, delta: ndarray) -> _Excess:
    weights, sums = strata.source.weights, strata.sums(delta)
    flat = [part.reshape(len(part), -1) for part in (strata.counts, sums)]
    drawn = [(weights @ part).reshape(len(weights), *strata.counts.shape[1:]) for part in flat]
    whole = strata.counts.sum(axis=0), sums.sum(axis=0)
    found = {name: strata.excess(name, *whole) for name in strata.classes()}
    return _Excess(
        {name: float(value) for name, (value, _) in found.items()},
        {name: float(matched) for name, (_, matched) in found.items()},
        {name: strata.excess(name, drawn[0], drawn[1])[0] for name in found},
    )


def matched_rows(
    source: SourceTable,
    deltas: Mapping[str, Float[ndarray, " token"]],
    last: Sequence[tuple[str, str]],
    config: LogprobsConfig,
) -> Iterator[ExcessRow | ContrastRow]:
    """Excess of every class in every model, and the contrasts of the last models of every two arms.

    Args:
        source: The traces.
        deltas: Model → Δ against base of every token.
        last: ``(arm, last model)`` of every arm.
        config: Settings.
    """
    strata = Strata.of(source, config)
    found = {model: _of_model(strata, delta) for model, delta in deltas.items()}
    n = {name: int(strata.counts[:, strata.source.table.names.index(name)].sum()) for name in strata.classes()}
    controls = {name: strata.n_controls(name) for name in n}
    for model, excess in found.items():
        for name, value in excess.value.items():
            yield ExcessRow(
                model=model, source=source.name, group=name, excess=interval(value, excess.drawn[name], source.prompts.n),
                matched=excess.matched[name], n=n[name], n_controls=controls[name],
            )  # fmt: skip
    for i, (arm, model) in enumerate(last):
        for other_arm, other in last[i + 1 :]:
            one, two = found[model], found[other]
            for name in one.value:
                value = one.value[name] - two.value[name]
                yield ContrastRow(
                    first=arm, second=other_arm, first_model=model, second_model=other, source=source.name, group=name,
                    contrast=interval(value, one.drawn[name] - two.drawn[name], source.prompts.n),
                    matched=one.matched[name], n=n[name], n_controls=controls[name],
                )  # fmt: skip
