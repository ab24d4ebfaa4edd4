"""Scores of several models on the same items, and the paired bootstrap over these items.

The profile of a model is the vector of its scores on the skills (or on the cells, skill × domain). Items are resampled within
their cell, and each draw takes the same items for all models, so that differences between models are paired. Items of one
cluster, such as the guided and the unguided form of one question, are drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.statistics import Interval, clustered_interval, share_interval

Level = Literal["skill", "cell", "task"]
"""What the entries of a profile are."""
N_PSEUDO = 4
"""Items with a coin flip for each model that the smoothed noise adds to every skill: z² of Agresti & Min (2005), rounded."""


@dataclass(frozen=True)
class ItemScores:
    """The share of right responses of every model to every item.

    Attributes:
        models: Names of the rows.
        right: Share of right responses; 0 or 1 for a single response.
        skill: Skill of each item; the name of its task where it has no label.
        domain: Domain of each item; empty where it has no label.
        task: Task of each item.
        cluster: Items with one name are resampled together.
        chance: Share of right answers of a random answerer to each item; 0 where it is not known.
        n_draws: Responses to each item.
    """

    models: tuple[str, ...]
    right: Float[ndarray, "model item"]
    skill: tuple[str, ...]
    domain: tuple[str, ...]
    task: tuple[str, ...]
    cluster: tuple[str, ...]
    chance: Float[ndarray, " item"]
    n_draws: int = 1

    def names(self, level: Level) -> tuple[str, ...]:
        """The group of each item: its skill, its task, or its cell ``skill/domain`` (the skill where no domain is known)."""
        if level != "cell":
            return getattr(self, level)
        pairs = zip(self.skill, self.domain, strict=True)
        return tuple(f"{skill}/{domain}" if domain else skill for skill, domain in pairs)

    def groups(self, level: Level) -> tuple[str, ...]:
        """The groups that have items, sorted by name, so that the order of the items does not matter."""
        return tuple(sorted(set(self.names(level))))

    def sorted(self) -> "ItemScores":
        """The same scores with the items in an order that depends on the items alone."""
        labels = zip(self.skill, self.domain, self.task, self.cluster, self.chance.tolist(), strict=True)
        keys = [(*label, *column) for label, column in zip(labels, self.right.T.tolist(), strict=True)]
        return self.take(sorted(range(len(keys)), key=keys.__getitem__))

    def without_chance(self) -> "ItemScores":
        """The scores with chance rates of 0: what is counted cannot be guessed as the answer can."""
        return replace(self, chance=np.zeros_like(self.chance))

    def take(self, items: Sequence[int]) -> "ItemScores":
        """The scores on some items."""
        places = list(items)
        labels = ("skill", "domain", "task", "cluster")
        parts = {name: tuple(getattr(self, name)[place] for place in places) for name in labels}
        return replace(self, right=self.right[:, places], chance=self.chance[places], **parts)

    def profile(self, level: Level) -> Float[ndarray, "model group"]:
        """Mean score of every model on the items of each group."""
        member = self._members(level)
        return self.right @ member / member.sum(axis=0)

    def chances(self, level: Level) -> Float[ndarray, " group"]:
        """Mean chance rate of the items of each group."""
        member = self._members(level)
        return self.chance @ member / member.sum(axis=0)

    def _members(self, level: Level) -> Float[ndarray, "item group"]:
        names = np.array(self.names(level))
        return (names[:, None] == np.array(self.groups(level))).astype(np.float64)

    def items(self, level: Level, group: str) -> Int[ndarray, " item"]:
        """Places of the items of one group."""
        return np.flatnonzero(np.array(self.names(level)) == group)

    def cluster_sums(self, items: Int[ndarray, " item"]) -> Float[ndarray, "cluster column"]:
        """For each cluster of some items: their number, the sum of their chance rates, and that of the scores of each model."""
        number = {name: place for place, name in enumerate(dict.fromkeys(self.cluster[item] for item in items))}
        found = np.zeros((len(number), 2 + len(self.models)))
        columns = np.column_stack([np.ones(len(items)), self.chance[items], self.right[:, items].T])
        np.add.at(found, [number[self.cluster[item]] for item in items], columns)
        return found

    def intervals(self, level: Level, group: str) -> list[Interval]:
        """The score of every model on one group with its interval over clusters: Wilson's where each has one response."""
        items = self.items(level, group)
        counts, _, *hits = self.cluster_sums(items).T
        if self.n_draws == 1 and len(counts) == len(items):
            return [share_interval(row[:, None] > 0.5) for row in hits]
        return [clustered_interval(row, counts)._replace(n=len(items)) for row in hits]


def corrected(
    score: Float[ndarray, "*lead group"], chance: Float[ndarray, "*#lead group"]
) -> Float[ndarray, "*lead group"]:
    """Scores on the scale on which a random answerer has 0 and an oracle 1: (score − chance) / (1 − chance)."""
    return (score - chance) / (1 - chance)


@dataclass(frozen=True)
class Resampled:
    """Profiles of bootstrap draws, chance-corrected.

    Attributes:
        value: The profile itself.
        draws: The profile of each draw.
        smooth: Deviations of a draw from the profile, with the noise of `N_PSEUDO` further items in each group. They do not
            vanish where no item tells two models apart, because few items do not prove that no item does.
    """

    value: Float[ndarray, "model group"]
    draws: Float[ndarray, "draw model group"]
    smooth: Float[ndarray, "draw model group"]

    @property
    def plain(self) -> Float[ndarray, "draw model group"]:
        """Deviations of each draw from the profile."""
        return self.draws - self.value

    def columns(self, models: Sequence[int]) -> "Resampled":
        """The profiles of some models, in this order."""
        places = list(models)
        return Resampled(self.value[places], self.draws[:, places], self.smooth[:, places])


def resample(scores: ItemScores, level: Level, *, draws: int, seed: int) -> Resampled:
    """Bootstrap the profiles of all models at once. The items of a draw depend on the seed and the items alone.

    Args:
        scores: Scores on the items.
        level: What the profile is over.
        draws: Number of draws.
        seed: Seed of the draws.
    """
    scores = scores.sorted()
    rng = np.random.default_rng(seed)
    names, groups = scores.names(level), scores.groups(level)
    shape = (draws, len(scores.models), len(groups))
    sums, counts, chances = np.zeros(shape), np.zeros((draws, 1, len(groups))), np.zeros((draws, 1, len(groups)))
    strata = np.unique(list(zip(scores.skill, scores.domain, scores.task, strict=True)), axis=0, return_inverse=True)[1]
    for stratum in range(strata.max() + 1):
        items = np.flatnonzero(strata == stratum)
        part = scores.cluster_sums(items)
        drawn = _weights(rng, draws, len(part)) @ part
        group = groups.index(names[items[0]])
        sums[:, :, group] += drawn[:, 2:]
        counts[:, 0, group] += drawn[:, 0]
        chances[:, 0, group] += drawn[:, 1]
    value, chance, raw = scores.profile(level), scores.chances(level), sums / counts
    flips = rng.binomial(N_PSEUDO, 0.5, shape) - N_PSEUDO / 2
    smooth = ((raw - value) * counts + flips) / (counts + N_PSEUDO) / (1 - chance)
    return Resampled(corrected(value, chance), corrected(raw, chances / counts), smooth)


def _weights(rng: np.random.Generator, draws: int, n: int) -> Float[ndarray, "draw cluster"]:
    """How often each of n clusters is in each draw of n clusters."""
    places = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)
