"""The course of an arm as numbers with intervals, and differences between two arms.

Every number is a function of a set of live features. Its interval is a bootstrap over features: it measures how the
number depends on which features the dictionary found, not how it varies over seeds or labs.

* ``reached_norm`` at checkpoint c: Σ_k d_kc d_kT / Σ_k d_kT², where d is the change of a decoder norm from base and T the
  last checkpoint. It is the share of the final change that checkpoint c has reached (0 at base, 1 at the end).
  ``reached_shift`` is the same with the change of the decoder itself, which includes rotations. Both are specific to
  mechprobe.
* ``half_norm``, ``half_shift``: progress at which half of the final change is reached.
* ``departure``: mean |NRN − 1/2|.
* ``gained``, ``lost``: shares of live features whose norm is 2 : 1 or more in favor of the checkpoint, or of base
  (``specific_nrn``). ``specific``: both; ``confirmed``: the specific features that latent scaling confirms.
* ``relative_shift``: Σ_k ‖change of decoder‖ / Σ_k ‖decoder of base‖.
* ``adjacent_overlap``: |A ∩ B| / top of the sets of highest NRN at neighboring checkpoints; ``last_overlap``: at the last
  two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.emergence.overlap import adjacent_overlaps, interval
from mechprobe.emergence.trajectories import crossing
from mechprobe.features.table.norms import nrn
from mechprobe.statistics import Interval

Statistics = dict[str, ndarray]
"""Name → one value, or one per column (base and checkpoints), per checkpoint, or per pair of neighbors."""


@dataclass(frozen=True)
class ArmNumbers:
    """The live features of one dictionary, in base and the checkpoints of one arm.

    Attributes:
        norms: L1 decoder norms in the models' own units, base first; ``decoder`` in the same units.
        confirmed: Whether latent scaling confirms that base or the checkpoint lacks the feature.
        progress: Share of training done at each column.
        top: Size of the sets that are compared.
        specific_nrn: NRN from which base lacks a feature.
    """

    norms: Float[ndarray, "alive column"]
    decoder: Float[ndarray, "alive column d_model"]
    confirmed: Bool[ndarray, "alive checkpoint"]
    progress: Float[ndarray, " column"]
    top: int
    specific_nrn: float

    def nrn(self) -> Float[ndarray, "alive checkpoint"]:
        """NRN of every checkpoint against base."""
        return np.stack([nrn(self.norms, tuned=column) for column in range(1, self.norms.shape[1])], axis=1)

    def statistics(self) -> Callable[[Int[ndarray, " feature"]], Statistics]:
        """A function from features, with repeats allowed, to the numbers over them."""
        change = self.norms - self.norms[:, :1]
        norm_products = change * change[:, -1:]
        moved = self.decoder - self.decoder[:, :1]
        shift_products = (moved * moved[:, -1:]).sum(axis=2)
        lengths = np.linalg.norm(moved, axis=2)
        base_length = np.linalg.norm(self.decoder[:, 0], axis=1)
        share = self.nrn()
        gained, lost = share >= self.specific_nrn, share <= 1 - self.specific_nrn
        flags = {
            "departure": np.abs(np.nan_to_num(share, nan=0.5) - 0.5),  # a feature in neither model does not differ
            "gained": gained,
            "lost": lost,
            "specific": gained | lost,
            "confirmed": (gained | lost) & self.confirmed,
        }

        def over(features: Int[ndarray, " feature"]) -> Statistics:
            values = {
                "reached_norm": _projection(norm_products[features]),
                "reached_shift": _projection(shift_products[features]),
                "relative_shift": lengths[features].sum(axis=0) / base_length[features].sum(),
                "adjacent_overlap": adjacent_overlaps(share[features], self.top),
                **{name: flag[features].mean(axis=0) for name, flag in flags.items()},
            }
            values["half_norm"] = np.array([_half(values["reached_norm"], self.progress)])
            values["half_shift"] = np.array([_half(values["reached_shift"], self.progress)])
            values["last_overlap"] = values["adjacent_overlap"][-1:]
            values["last_departure"] = values["departure"][-1:]
            values["last_confirmed"] = values["confirmed"][-1:]
            return values

        return over


@dataclass(frozen=True)
class Curves:
    """Numbers over the ``n`` live features of one arm, and the same for every bootstrap draw, ``[draw, ...]``."""

    values: Statistics
    draws: Statistics
    n: int

    def intervals(self) -> dict[str, tuple[Interval, ...]]:
        """Every number with its 95 % interval over features."""
        return {
            name: tuple(interval(float(value[i]), self.draws[name][:, i], self.n) for i in range(len(value)))
            for name, value in self.values.items()
        }


def measure_curves(numbers: ArmNumbers, *, draws: int, seed: tuple[int, ...]) -> Curves:
    """The curves of an arm. Arms of one dictionary and seed draw the same features, so that their differences are paired."""
    over, n = numbers.statistics(), len(numbers.norms)
    rng = np.random.default_rng(seed)
    drawn = [over(rng.integers(0, n, n)) for _ in range(draws)]
    values = over(np.arange(n))
    return Curves(values, {name: np.stack([draw[name] for draw in drawn]) for name in values}, n)


def _projection(products: Float[ndarray, "feature column"]) -> Float[ndarray, " column"]:
    total = products.sum(axis=0)
    return total / total[-1] if total[-1] > 0 else np.full_like(total, np.nan)


def _half(reached: Float[ndarray, " column"], progress: Float[ndarray, " column"]) -> float:
    return crossing(reached, progress, 0.5) if np.isfinite(reached).all() else float("nan")
