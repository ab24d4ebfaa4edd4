"""The dip statistic: how much likelier a curve is with a stretch below base than as a flat line or a gain. It is ours.

Noise is independent and normal with known standard errors. A curve is a sequence of states: *base* (the score equals the true base),
*up* (anywhere above base), *plateau* (a fixed height above base) and *below*. Both likelihoods are averaged over the true base.

With e_t the standard error of the difference between checkpoint t and base, the states of a dip are: base, then one stretch below,
then base or up to the end. A checkpoint below is `DEPTH` e_t below base, or anywhere below, with equal weight; a shoulder, half as deep,
may stand on each side. Without a dip the states
are base to the end, or base and from some checkpoint on up or a plateau.

The weights of the curves without a dip are a rounded least favourable mixture (Elliott, Müller & Watson 2015): for eight checkpoints,
flat curves and gains of every height are called a dip about equally often. Weights decide the power only; `dip_test` holds the level.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

DEPTH = 3.0
"""Depth for which the test is built, in standard errors of the difference."""
SINGLE = 3.0
"""Further weight of a stretch of one checkpoint; every stretch has weight 1."""
SHOULDER = 0.3
"""Share of stretches with a shoulder, on each side."""
AFTER_UP = 0.6
"""Share of dips after which the scores are above base, instead of at base."""
UP = 0.24
"""Weight of the gains to any heights from one checkpoint on; the flat curve has weight 1."""
UP_AT_ONCE = 0.1
"""Weight of the gains to any heights from the first checkpoint on: a curve that rises at once and returns to base is no dip."""
PLATEAUS = {1.5: 0.02, 2.0: 0.03}
"""Height of a plateau in standard errors of the difference → weight of the gains to it from one checkpoint on."""
FIRST_PLATEAUS = {1.5: 0.0, 2.0: 0.01}
"""The same where only the first checkpoint is at base; from the first on a plateau is a flat curve above a base measured low."""
NO_PLATEAUS = dict.fromkeys(PLATEAUS, 0.0)
_WIDTH = 4.0
"""Range of *up* and of *anywhere below*, in standard errors of the difference."""
_SCALE = 4.0
"""Factor of every likelihood; ratios do not feel it, and products over many checkpoints stay in range."""
_ROWS = 4000
_TINY = 1e-300


@dataclass(frozen=True)
class Noise:
    """Standard errors of the base score and of each checkpoint's, without what all scores share (the choice of items)."""

    base: float
    checkpoints: tuple[float, ...]

    @property
    def all(self) -> Float[ndarray, " score"]:
        """Standard errors, base first."""
        return np.array([self.base, *self.checkpoints])

    @property
    def differences(self) -> Float[ndarray, " checkpoint"]:
        """e_t, the standard error of each checkpoint's difference from base."""
        return np.hypot(self.base, self.checkpoints)

    def draw(self, rng: np.random.Generator, n: int) -> Float[ndarray, "draw score"]:
        """Noise of n curves, base first."""
        return rng.normal(size=(n, 1 + len(self.checkpoints))) * self.all


def dip_statistic(curves: Float[ndarray, "curve score"], noise: Noise) -> Float[ndarray, " curve"]:
    """The logarithm of the mean likelihood with a dip over that without; base is the first score of each curve."""
    lasting, over, without = _likelihoods(curves, noise)
    n = len(noise.checkpoints)
    stretches = n * (n + 1) / 2 + SINGLE * n
    return np.log((lasting + over) / stretches + _TINY) - np.log(without + _TINY)


def recovery_statistic(curves: Float[ndarray, "curve score"], noise: Noise) -> Float[ndarray, " curve"]:
    """The logarithm of the likelihood of all stretches that end before the last checkpoint over that of all that last.

    Above 0 the last scores are likelier at base or above it than below.
    """
    lasting, over, _ = _likelihoods(curves, noise)
    return np.log(over + _TINY) - np.log(lasting + _TINY)


def _likelihoods(curves: Float[ndarray, "curve score"], noise: Noise) -> tuple[ndarray, ndarray, ndarray]:
    """Likelihoods ``[curve]`` of lasting stretches, of stretches that end, and without one."""
    parts = np.array_split(curves, max(1, -(-len(curves) // _ROWS)))
    lasting, over, without = zip(*(_part(part, noise) for part in parts), strict=True)
    return np.concatenate(lasting), np.concatenate(over), np.concatenate(without)


@dataclass(frozen=True)
class _States:
    """Likelihood of each score ``[curve base]`` in each state, per checkpoint."""

    base: list[Float[ndarray, "curve base"]]
    up: list[Float[ndarray, "curve base"]]
    below: list[Float[ndarray, "curve base"]]
    shoulder: list[Float[ndarray, "curve base"]]
    plateaus: list[dict[float, Float[ndarray, "curve base"]]]


def _true_base(curves: Float[ndarray, "curve score"], noise: Noise) -> tuple[ndarray, ndarray]:
    """A grid of true base scores ``[curve base]``, and the likelihood of the measured one."""
    points = int(np.clip(np.ceil(12.5 * noise.base / min(noise.all)), 13, 61))
    offsets = np.linspace(-4.5, 3.0, points)
    return curves[:, :1] + offsets * noise.base, np.broadcast_to(np.exp(-0.5 * offsets**2), (len(curves), points))


def _states(curves: Float[ndarray, "curve score"], base: Float[ndarray, "curve base"], noise: Noise) -> _States:
    from scipy.special import ndtr

    found = _States([], [], [], [], [])
    for place, (error, difference) in enumerate(zip(noise.checkpoints, noise.differences, strict=True)):
        above = (curves[:, 1 + place, None] - base) / error
        unit = difference / error

        def at(height: float, above: ndarray = above, unit: float = unit) -> ndarray:
            return _SCALE * np.exp(-0.5 * (above - height * unit) ** 2) / np.sqrt(2 * np.pi)

        up, wide = ndtr(above), _SCALE / (_WIDTH * unit)
        found.base.append(at(0.0))
        found.up.append(up * wide)
        found.below.append((at(-DEPTH) + (1 - up) * wide) / 2)
        found.shoulder.append(at(-DEPTH / 2))
        found.plateaus.append({height: at(height) for height in PLATEAUS})
    return found


def _part(curves: Float[ndarray, "curve score"], noise: Noise) -> tuple[ndarray, ndarray, ndarray]:
    n = len(noise.checkpoints)
    grid, weight = _true_base(curves, noise)
    states = _states(curves, grid, noise)
    before = [weight]  # base up to each checkpoint
    for place in range(n):
        before.append(before[-1] * states.base[place])
    one = np.ones_like(grid)
    base, up, plateaus = one, one, dict.fromkeys(PLATEAUS, one)
    after: list[ndarray] = [one] * (n + 1)  # from each checkpoint to the end, once the stretch is over
    without = before[n].sum(axis=1)
    for place in reversed(range(n)):
        base, up = base * states.base[place], up * states.up[place]
        plateaus = {height: rest * states.plateaus[place][height] for height, rest in plateaus.items()}
        after[place] = (1 - AFTER_UP) * base + AFTER_UP * up
        weights = (NO_PLATEAUS, FIRST_PLATEAUS)[place] if place < 2 else PLATEAUS
        gains = (UP if place else UP_AT_ONCE) * up
        gains = gains + sum(weight * plateaus[height] for height, weight in weights.items())
        without = without + (before[place] * gains).sum(axis=1)
    return *_dips(states, before, after), without


def _dips(states: _States, before: list[ndarray], after: list[ndarray]) -> tuple[ndarray, ndarray]:
    """Summed likelihood of the stretches below base that last to the end, and of those that do not.

    A stretch whose shoulder is the last checkpoint lasts.
    """
    n = len(states.base)
    lasting, over = np.zeros((2, len(before[0])))
    longer = {"lasting": np.zeros_like(before[0]), "over": np.zeros_like(before[0])}
    for place in reversed(range(n)):
        begin = before[place]
        if place:
            begin = (1 - SHOULDER) * begin + SHOULDER * before[place - 1] * states.shoulder[place - 1]
        single = {name: states.below[place] * end for name, end in _ends(states, after, place).items()}
        longer = {name: single[name] + states.below[place] * longer[name] for name in longer}
        lasting = lasting + (begin * (longer["lasting"] + SINGLE * single["lasting"])).sum(axis=1)
        over = over + (begin * (longer["over"] + SINGLE * single["over"])).sum(axis=1)
    return lasting, over


def _ends(states: _States, after: list[ndarray], place: int) -> dict[str, ndarray]:
    """Likelihood of everything after a stretch whose last checkpoint is ``place``."""
    n = len(states.base)
    nothing = np.zeros_like(after[n])
    if place == n - 1:
        return {"lasting": after[n], "over": nothing}
    sloped = SHOULDER * states.shoulder[place + 1] * after[place + 2]
    at_once = (1 - SHOULDER) * after[place + 1]
    return {"lasting": sloped, "over": at_once} if place == n - 2 else {"lasting": nothing, "over": at_once + sloped}
