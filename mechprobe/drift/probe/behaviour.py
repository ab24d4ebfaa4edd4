"""From scores of items to profiles, gains, courses of arms and transfer, all by one paired bootstrap over items."""

from collections.abc import Callable, Sequence
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
from mechprobe.drift.probe.scores import ItemScores, Level, Resampled, resample
from mechprobe.emergence.arms import Arm
from mechprobe.evals.skills.summary import above_chance
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
                found[model][group] = Score(raw=raw, corrected=above_chance(raw, float(chance)), chance=chance)
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
        half = (
            Z * float((self.drawn.smooth[:, first, skill] - self.drawn.smooth[:, second, skill]).std()) * (1 - chance)
        )
        return Interval(value, max(-1.0, value - half), min(1.0, value + half), len(items))

    def _p(self, model: int, skill: str) -> float:
        _, _, *hits = self.scores.cluster_sums(self.scores.items("skill", skill)).T
        before, after = (np.rint(hits[row] * self.scores.n_draws).astype(int) for row in (0, model))
        return sign_flip_exact(before, after)

    def norm(self, measure: "profile.Sublinear", drawn: Resampled) -> Norm:
        """A number of some profiles with its interval."""
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
    counts = {
        level: {group: len(scores.items(level, group)) for group in scores.groups(level)} for level in ("skill", "cell")
    }
    return Behaviour(
        skills=counts["skill"],
        cells=counts["cell"],
        profiles=found.profiles("skill"),
        cell_profiles=found.profiles("cell"),
        gains={model: found.gains(model) for model in tuned},
        arms={arm.name: arm_course(found, arm) for arm in arms},
        transfer=transfers(scores, config) if set(config.trained) & set(scores.task) else {},
        contrasts=tuple(_contrast(found, one, two) for one, two in combinations(arms, 2)),
    )


def arm_course(found: Analysis, arm: Arm) -> ArmCourse:
    """The course of one arm."""
    drawn = found.drawn.columns([0, *(found.place(name) for name in arm.checkpoints)])
    points = []
    for column, name in enumerate(arm.checkpoints, start=1):
        numbers = {key: found.norm(partial(measure, column=column), drawn) for key, measure in profile.MEASURES.items()}
        points.append(
            Point(model=name, progress=arm.progress[column], entropy=_entropy(drawn, column, found.n), **numbers)
        )
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
    """Entropy of the positive gains; NaN where no gain is above what noise alone gives at 95 % over all skills.

    Noise spreads the gains, so that draws lie above the value where few skills gain; the interval is widened to hold it.
    """
    gain, noise = profile.gains(drawn.value, column), profile.gains(drawn.smooth, column)
    if not (gain > np.quantile(noise.max(axis=-1), 0.95)).any():
        return _NONE._replace(n=n)
    value = float(profile.gain_entropy(gain))
    low, high = np.nanquantile(profile.gain_entropy(gain + noise), [0.025, 0.975])
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


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
    places = found.place(one.checkpoints[-1]), found.place(two.checkpoints[-1])
    one_gain, two_gain = _gains(found.drawn.value, places)
    one_noise, two_noise = _gains(found.drawn.smooth, places)
    value, low, high = profile.drift_difference(one_gain, two_gain, one_noise, two_noise)
    chances = found.scores.chances("skill").tolist()
    return Contrast(
        first=one.checkpoints[-1],
        second=two.checkpoints[-1],
        drift=Interval(value, low, high, found.n),
        gains={
            skill: _scaled(found.difference(*places, number), 1 / (1 - chances[number]))
            for number, skill in enumerate(found.skills)
        },
    )


def _gains(profiles: ndarray, places: tuple[int, int]) -> tuple[ndarray, ndarray]:
    """Gains of two models over base."""
    first, second = places
    return profiles[..., first, :] - profiles[..., 0, :], profiles[..., second, :] - profiles[..., 0, :]


def _scaled(found: Interval, factor: float) -> Interval:
    return Interval(found.value * factor, found.low * factor, found.high * factor, found.n)


def transfers(scores: ItemScores, config: ProbeConfig) -> dict[str, Transfer]:
    """The transferability index of every model but base."""
    tasks = scores.groups("task")
    trained = [number for number, task in enumerate(tasks) if task in config.trained]
    other = [number for number in range(len(tasks)) if number not in trained]
    if not other:
        return {}
    value, n = scores.profile("task"), scores.right.shape[1]
    noise = resample(scores, "task", draws=config.draws, seed=config.seed).smooth * (1 - scores.chances("task"))
    index = _Index(tasks, value, noise, trained, other, n)
    return {model: index.of(row) for row, model in enumerate(scores.models) if row}


@dataclass(frozen=True)
class _Index:
    """Raw scores by task with their noise, and which tasks were trained."""

    tasks: tuple[str, ...]
    value: Float[ndarray, "model task"]
    noise: Float[ndarray, "draw model task"]
    trained: list[int]
    other: list[int]
    n: int

    def of(self, row: int) -> Transfer:
        """The index of one model."""
        unclear = self._unclear_gain(row)
        reason = self._small_base() or unclear
        each = {self.tasks[number]: _NONE if reason else self._interval(row, [number]) for number in self.other}
        return Transfer(
            trained=self._gain(row, self.trained),
            other=self._gain(row, self.other),
            index=_NONE if reason else self._interval(row, self.other),
            by_task=each,
            absolute=_NONE if unclear else self._between(row, self._ratio_of_gains),
            reason=reason,
        )

    def _small_base(self) -> str:
        least = self.value[0] - Z * self.noise[:, 0].std(axis=0)
        low = [number for number in (*self.trained, *self.other) if least[number] < MIN_BASE]
        if not low:
            return ""
        task, score = self.tasks[low[0]], self.value[0, low[0]]
        return (
            f"base scores {score:.3f} on {task}, not clear of {MIN_BASE:g}, so that a gain relative to it says nothing"
        )

    def _unclear_gain(self, row: int) -> str:
        gain = float(_mean_gain(self.value[0], self.value[row], self.trained))
        noise = _mean_gain(self.noise[:, 0], self.noise[:, row], self.trained)
        if gain > Z * float(np.std(noise)):
            return ""
        return f"the gain on the trained tasks ({100 * gain:+.1f} points) is not clearly above 0"

    def _gain(self, row: int, tasks: list[int]) -> Interval:
        found = self._between(row, lambda base, tuned: _mean_gain(base, tuned, tasks))
        return found._replace(low=max(-1.0, found.low), high=min(1.0, found.high))

    def _ratio_of_gains(self, base: ndarray, tuned: ndarray) -> profile.Values:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 100 * _mean_gain(base, tuned, self.other) / _mean_gain(base, tuned, self.trained)

    def _interval(self, row: int, other: list[int]) -> Interval:
        return self._between(row, lambda base, tuned: profile.transferability(base, tuned, self.trained, other))

    def _between(self, row: int, measure: Callable[[ndarray, ndarray], profile.Values]) -> Interval:
        """A number of base's and a model's scores with the middle 95 % of its finite draws."""
        value = float(measure(self.value[0], self.value[row]))
        draws = np.asarray(measure(self.value[0] + self.noise[:, 0], self.value[row] + self.noise[:, row]))
        finite = draws[np.isfinite(draws)]
        if not np.isfinite(value) or not len(finite):
            return _NONE._replace(n=self.n)
        low, high = np.quantile(finite, [0.025, 0.975])
        return Interval(value, float(low), float(high), self.n)


def _mean_gain(base: ndarray, tuned: ndarray, tasks: list[int]) -> profile.Values:
    return (tuned - base)[..., tasks].mean(axis=-1)
