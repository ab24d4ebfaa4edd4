"""From scores of items to profiles, gains, courses of arms and transfer, all by one paired bootstrap over items."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.drift.probe import profile
from mechprobe.drift.probe.behaviour_result import (
    ArmCourse,
    Behaviour,
    Collapse,
    Contrast,
    Gain,
    Point,
    Score,
    Transfer,
)
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.profile import Norm, norm_interval
from mechprobe.drift.probe.scores import ItemScores, Level, Resampled, corrected_interval, resample
from mechprobe.emergence.arms import Arm
from mechprobe.score_intervals import Z
from mechprobe.statistics import Interval, holm, paired_difference, sign_flip_exact

MIN_BASE = 0.05
"""Raw score of base on a task below which a gain relative to it says nothing (ours)."""
_NONE = Interval(float("nan"), float("nan"), float("nan"), 0)


@dataclass(frozen=True)
class Analysis:
    """Scores of all models with the bootstrap of their profiles; base is the first model."""

    scores: ItemScores
    config: ProbeConfig

    @cached_property
    def skills(self) -> tuple[str, ...]:
        """The entries of a profile."""
        return self.scores.groups("skill")

    @cached_property
    def drawn(self) -> Resampled:
        """Profiles over skills."""
        return resample(self.scores, "skill", draws=self.config.draws, seed=self.config.seed)

    @cached_property
    def n(self) -> int:
        """Number of items."""
        return self.scores.right.shape[1]

    def place(self, model: str) -> int:
        """Row of a model."""
        return self.scores.models.index(model)

    def profiles(self, level: Level) -> dict[str, dict[str, Score]]:
        """Model → group → score."""
        found: dict[str, dict[str, Score]] = {model: {} for model in self.scores.models}
        for group, chance in zip(self.scores.groups(level), self.scores.chances(level).tolist(), strict=True):
            for model, raw in zip(self.scores.models, self.scores.intervals(level, group), strict=True):
                found[model][group] = Score(raw=raw, corrected=corrected_interval(raw, chance), chance=chance)
        return found

    def gains(self, model: str) -> dict[str, Gain]:
        """Skill → gain of a model over base."""
        chances = self.scores.chances("skill").tolist()
        raw = [self.difference(self.place(model), 0, number) for number in range(len(self.skills))]
        p = [self._p(self.place(model), skill) for skill in self.skills]
        rows = zip(self.skills, chances, raw, p, holm(p), strict=True)
        return {
            skill: Gain(raw=gain, corrected=_scaled(gain, 1 / (1 - chance)), p=one, p_holm=adjusted)
            for skill, chance, gain, one, adjusted in rows
        }

    def difference(self, first: int, second: int, skill: int) -> Interval:
        """Raw score of one model minus that of another on one skill; Tango's interval where items are single responses."""
        scores, chance = self.scores, float(self.scores.chances("skill")[skill])
        items = scores.items("skill", self.skills[skill])
        if scores.n_draws == 1 and len(scores.cluster_sums(items)) == len(items):
            return paired_difference(scores.right[second, items] > 0.5, scores.right[first, items] > 0.5)
        value = float((scores.right[first, items] - scores.right[second, items]).mean())
        half = Z * float((self.drawn.smooth[:, first, skill] - self.drawn.smooth[:, second, skill]).std()) * (1 - chance)
        return Interval(value, max(-1.0, value - half), min(1.0, value + half), len(items))

    def _p(self, model: int, skill: str) -> float:
        _, _, *hits = self.scores.cluster_sums(self.scores.items("skill", skill)).T
        before, after = (np.rint(hits[row] * self.scores.n_draws).astype(int) for row in (0, model))
        return sign_flip_exact(before, after)

    def norm(self, measure: "profile.Seminorm", drawn: Resampled) -> Norm:
        """A seminorm of some profiles with its interval."""
        return norm_interval(measure, drawn.value, drawn.plain, drawn.smooth, self.n)


def measure_behaviour(scores: ItemScores, arms: Sequence[Arm], config: ProbeConfig) -> Behaviour:
    """Profiles, gains, courses, transfer and contrasts of all models.

    Args:
        scores: Scores of base, the first model, and of all checkpoints.
        arms: Arms with their checkpoints.
        config: Settings.
    """
    found = Analysis(scores, config)
    tuned = scores.models[1:]
    counts = {level: {group: len(scores.items(level, group)) for group in scores.groups(level)} for level in ("skill", "cell")}
    return Behaviour(
        skills=counts["skill"],
        cells=counts["cell"],
        profiles=found.profiles("skill"),
        cell_profiles=found.profiles("cell"),
        gains={model: found.gains(model) for model in tuned},
        arms={arm.name: _course(found, arm) for arm in arms},
        transfer=_transfers(scores, config) if set(config.trained) & set(scores.task) else {},
        contrasts=tuple(_contrast(found, one, two) for one, two in combinations(arms, 2)),
    )


def _course(found: Analysis, arm: Arm) -> ArmCourse:
    drawn = found.drawn.columns([0, *(found.place(name) for name in arm.checkpoints)])
    points = []
    for column, name in enumerate(arm.checkpoints, start=1):
        numbers = {key: found.norm(partial(measure, column=column), drawn) for key, measure in profile.SEMINORMS.items()}
        points.append(Point(model=name, progress=arm.progress[column], entropy=_entropy(drawn, column, found.n), **numbers))
    path = found.norm(profile.path_length, drawn)
    return ArmCourse(
        arm=arm.name,
        points=tuple(points),
        spaced_by=arm.spaced_by,
        path_l1=path,
        path_l2=found.norm(partial(profile.path_length, order=2), drawn),
        wandering=_wandering(path, points[-1].drift_l1),
        collapses=_collapses(found, arm, drawn),
    )


def _entropy(drawn: Resampled, column: int, n: int) -> Interval:
    """Entropy of the positive gains; NaN where no gain is above what noise alone gives at 95 % over all skills."""
    gain = profile.gains(drawn.value, column)
    if not (gain > np.quantile(profile.gains(drawn.smooth, column).max(axis=-1), 0.95)).any():
        return _NONE._replace(n=n)
    ends = np.nanquantile(profile.gain_entropy(profile.gains(drawn.draws, column)), [0.025, 0.975])
    return Interval(float(profile.gain_entropy(gain)), float(ends[0]), float(ends[1]), n)


def _wandering(path: Norm, net: Norm) -> Interval:
    """Path over net drift, with the widest ends that both intervals allow; it cannot be below 1."""
    if net.low <= 0:
        return _NONE._replace(n=path.n)
    return Interval(path.value / net.value, max(1.0, path.low / net.high), path.high / net.low, path.n)


def _collapses(found: Analysis, arm: Arm, drawn: Resampled) -> tuple[Collapse, ...]:
    gain = drawn.value[1:] - drawn.value[0]
    noise = drawn.smooth[:, 1:] - drawn.smooth[:, :1]
    error = noise.std(axis=0)
    limit = float(np.quantile((-noise / error).max(axis=(1, 2)), 0.95))
    below = profile.below_base(gain, error, found.config.delta)
    sure = below & (-gain / error > limit)
    return tuple(
        Collapse(
            skill=skill,
            kind=profile.collapse_kind(below[:, number].tolist()),  # type: ignore[arg-type]
            checkpoints=tuple(name for name, flag in zip(arm.checkpoints, below[:, number], strict=True) if flag),
            confirmed=bool(sure[:, number].any()),
        )
        for number, skill in enumerate(found.skills)
        if below[:, number].any()
    )


def _contrast(found: Analysis, one: Arm, two: Arm) -> Contrast:
    first, second = found.place(one.checkpoints[-1]), found.place(two.checkpoints[-1])
    value, smooth = found.drawn.value, found.drawn.smooth
    lengths = [float(profile.distance(value[row] - value[0])) for row in (first, second)]
    reach = sum(profile.distance(smooth[:, row] - smooth[:, 0]) for row in (first, second))
    half, change = float(np.quantile(reach, 0.95)), lengths[0] - lengths[1]
    chances = found.scores.chances("skill").tolist()
    return Contrast(
        first=one.checkpoints[-1],
        second=two.checkpoints[-1],
        drift=Interval(change, change - half, change + half, found.n),
        gains={
            skill: _scaled(found.difference(first, second, number), 1 / (1 - chances[number]))
            for number, skill in enumerate(found.skills)
        },
    )


def _scaled(found: Interval, factor: float) -> Interval:
    return Interval(*(float(part * factor) for part in found[:3]), found.n)


def _transfers(scores: ItemScores, config: ProbeConfig) -> dict[str, Transfer]:
    """The transferability index of every model but base."""
    tasks = scores.groups("task")
    trained = [number for number, task in enumerate(tasks) if task in config.trained]
    other = [number for number in range(len(tasks)) if number not in trained]
    if not other:
        return {}
    drawn = resample(scores, "task", draws=config.draws, seed=config.seed)
    value = scores.profile("task")
    index = _Index(tasks, value, drawn, trained, other, scores.right.shape[1])
    return {model: index.of(row) for row, model in enumerate(scores.models) if row}


@dataclass(frozen=True)
class _Index:
    """Raw scores by task, found and drawn, and which tasks were trained."""

    tasks: tuple[str, ...]
    value: Float[ndarray, "model task"]
    drawn: Resampled
    trained: list[int]
    other: list[int]
    n: int

    def of(self, row: int) -> Transfer:
        """The index of one model."""
        reason = self._reason(row)
        each = {self.tasks[number]: _NONE if reason else self._interval(row, [number]) for number in self.other}
        return Transfer(
            trained=self._relative(row, self.trained),
            other=self._relative(row, self.other),
            index=_NONE if reason else self._interval(row, self.other),
            by_task=each,
            reason=reason,
        )

    def _reason(self, row: int) -> str:
        low = [number for number in (*self.trained, *self.other) if self.value[0, number] < MIN_BASE]
        if low:
            number = low[0]
            return (
                f"base scores {self.value[0, number]:.3f} on {self.tasks[number]}, below {MIN_BASE:g}, so that gains relative to "
                "it say nothing"
            )
        gain = self.value[row, self.trained] - self.value[0, self.trained]
        noise = (self.drawn.smooth[:, row] - self.drawn.smooth[:, 0])[:, self.trained]
        if abs(gain.mean()) <= Z * float(noise.mean(axis=1).std()):
            return f"the gain on the trained tasks ({100 * gain.mean():+.1f} points) is not clear of 0"
        return ""

    def _relative(self, row: int, tasks: list[int]) -> Interval:
        value = profile.relative_gain(self.value[0, tasks], self.value[row, tasks])
        return _between(float(value), profile.relative_gain(self.drawn.raw[:, 0, tasks], self.drawn.raw[:, row, tasks]), self.n)

    def _interval(self, row: int, other: list[int]) -> Interval:
        over = partial(profile.transferability, trained=self.trained, other=other)
        return _between(float(over(self.value[0], self.value[row])), over(self.drawn.raw[:, 0], self.drawn.raw[:, row]), self.n)


def _between(value: float, draws: Float[ndarray, " draw"], n: int) -> Interval:
    """A value with the middle 95 % of its finite draws."""
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(finite):
        return _NONE._replace(n=n)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(value, float(low), float(high), n)
