"""Summarize scored responses by cell, skill, domain, level and family: shares with intervals, counts, and chance."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from math import hypot, nan
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import Interval, clustered_interval, wilson_interval

if TYPE_CHECKING:
    import pandas as pd

Group = Literal["all", "skill", "domain", "cell", "level", "family", "split"]
GROUPS: tuple[Group, ...] = get_args(Group)


class ItemScore(Result):
    """The verdicts on one response with the labels of its item; the fields from ``boxed_correct`` on are those of `SkillScore`."""

    id: str
    draw: int
    skill: str
    domain: str
    family: str
    level: int
    split: str
    kind: str | None
    chance: float
    """Share of right answers of a random answerer."""
    boxed_correct: bool
    behaviour_ok: bool | None
    strict: bool
    parsed: bool
    cut: bool
    detected: bool | None
    localized: bool | None
    corrected: bool | None

    @property
    def cell(self) -> str:
        """``skill/domain``."""
        return f"{self.skill}/{self.domain}"


class DiagnosticScores(Result):
    """What the final answers say about the items of the skill diagnostic, without credit for "always an error"."""

    detection: IntervalNumbers
    """Balanced accuracy: the mean of the two shares below; 0.5 for whoever always says the same. NaN if one kind is missing."""
    error_found: IntervalNumbers
    """Share of the items with an error of which the response says so."""
    clean_found: IntervalNumbers
    """Share of the clean items of which the response says so."""
    localization: IntervalNumbers
    """Share of the items with an error whose wrong step is named."""
    correction: IntervalNumbers
    """Share of the items with an error and a right value in their answer for which step and value are right."""


class SkillRow(Result):
    """The scores of one group of items. Intervals are 95 %; cut and unparsed responses count as not right."""

    by: Group
    name: str
    """Skill, domain, ``skill/domain``, level, family or split; empty for all items."""
    n: int
    """Items."""
    n_responses: int
    boxed: IntervalNumbers
    """Share of right final answers (paper, appendix A.1)."""
    behaviour: IntervalNumbers | None
    """Share of the responses with the behaviour of section 3.1, of those to items that ask for one; None without such items."""
    strict: IntervalNumbers
    """Share with both; equals ``boxed`` where no behaviour is asked."""
    unparsed: int
    """Responses that ended by themselves and have no readable final answer."""
    cut: int
    """Responses that were cut or never left their thinking block."""
    chance: Number
    """Mean share of right answers of a random answerer."""
    corrected: IntervalNumbers
    """(boxed − chance) / (1 − chance): 0 at chance, 1 if all are right."""
    diagnostic: DiagnosticScores | None
    """For groups with items of the skill diagnostic."""


class SkillScores(Result):
    """Scores of one model on skill items: a row for every group, and the verdicts on every response."""

    rows: list[SkillRow]
    items: list[ItemScore]

    def _in_short(self) -> str:
        first = self.rows[0] if self.rows else None
        share = f", {first.boxed.value:.1%} boxed, {first.strict.value:.1%} strict" if first else ""
        return f"{len(self.items)} responses{share}"

    def by(self, group: Group) -> dict[str, SkillRow]:
        """The rows of one kind of group by name, e.g. ``by("cell")["calculation/physics"]``."""
        return {row.name: row for row in self.rows if row.by == group}

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a table; an interval gives the columns ``boxed``, ``boxed_low`` and ``boxed_high``."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows])


def _flat(row: SkillRow) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    parts = dict(row) | {"diagnostic": None} | (dict(row.diagnostic) if row.diagnostic else {})
    for name, value in parts.items():
        if isinstance(value, Interval):
            flat |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif name != "diagnostic":
            flat[name] = value
    return flat


def summarize(scores: Iterable[ItemScore]) -> SkillScores:
    """Rows for all items, then by skill, domain, cell, level, family and split, in order of appearance."""
    scores = list(scores)
    rows = [
        _row(by, name, [score for score in scores if _name(by, score) == name])
        for by in GROUPS
        for name in dict.fromkeys(_name(by, score) for score in scores)
    ]
    return SkillScores(rows=rows, items=scores)


def _name(by: Group, score: ItemScore) -> str:
    return "" if by == "all" else str(getattr(score, by))


def _row(by: Group, name: str, scores: Sequence[ItemScore]) -> SkillRow:
    boxed = share(scores, lambda score: score.boxed_correct)
    behaviour = share(scores, lambda score: score.behaviour_ok)
    chance = sum(score.chance for score in scores) / len(scores)
    diagnostic = [score for score in scores if score.detected is not None]
    return SkillRow(
        by=by,
        name=name,
        n=len({score.id for score in scores}),
        n_responses=len(scores),
        boxed=boxed,
        behaviour=behaviour if behaviour.n else None,
        strict=share(scores, lambda score: score.strict),
        unparsed=sum(not score.parsed and not score.cut for score in scores),
        cut=sum(score.cut for score in scores),
        chance=chance,
        corrected=above_chance(boxed, chance),
        diagnostic=_diagnostic(diagnostic) if diagnostic else None,
    )


def share(scores: Iterable[ItemScore], verdict: Callable[[ItemScore], bool | None]) -> Interval:
    """Share of true verdicts over items, those of None left out; intervals are clustered where items have several draws."""
    found: dict[Hashable, list[bool]] = {}
    for score in scores:
        if (value := verdict(score)) is not None:
            found.setdefault(score.id, []).append(value)
    if all(len(values) == 1 for values in found.values()):
        return wilson_interval(sum(values[0] for values in found.values()), len(found))
    return clustered_interval([sum(values) for values in found.values()], [len(values) for values in found.values()])


def above_chance(found: Interval, chance: float) -> Interval:
    """A score on the scale on which a random answerer has 0 and an oracle 1: (score − chance) / (1 − chance); NaN for chance 1."""
    if not chance < 1:
        return Interval(nan, nan, nan, found.n)
    value, low, high = (float((end - chance) / (1 - chance)) for end in found[:3])
    return Interval(value, low, high, found.n)


def _diagnostic(scores: Sequence[ItemScore]) -> DiagnosticScores:
    error = share([score for score in scores if score.localized is not None], lambda score: score.detected)
    clean = share([score for score in scores if score.localized is None], lambda score: score.detected)
    return DiagnosticScores(
        detection=mean_of_shares(error, clean),
        error_found=error,
        clean_found=clean,
        localization=share(scores, lambda score: score.localized),
        correction=share(scores, lambda score: score.corrected),
    )


def mean_of_shares(first: Interval, second: Interval) -> Interval:
    """Mean of two independent shares; the interval recovers the variances from their limits (Zou & Donner 2008)."""
    n = first.n + second.n
    if not first.n or not second.n:
        return Interval(nan, nan, nan, n)
    value = (first.value + second.value) / 2
    below = hypot(first.value - first.low, second.value - second.low) / 2
    above = hypot(first.high - first.value, second.high - second.value) / 2
    return Interval(value, value - below, value + above, n)
