"""Reading the scores that a caller gives: published shares, scores with standard errors, or right and wrong of every item."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.dip_statistic import Noise
from mechprobe.dynamics.evidence import Evidence, ItemScores, PublishedShares, ScoresWithErrors
from mechprobe.errors import InputError

Unit = Literal["share", "percent", "score"]
MIN_CHECKPOINTS = 2
MOST = 10**9
"""Largest number of problems or responses."""


class Scores(NamedTuple):
    """Evidence of a curve, of its ended responses and its cut shares, and the unit of the scores.

    ``scale`` is what a share of 1 is in that unit, or the number in which scores of another kind are counted. The evidence rises where
    a model gets better; ``turned`` says that the scores fall there.
    """

    evidence: Evidence
    unit: Unit
    responses: int
    ended: Evidence | None
    cut: Evidence | None
    turned: bool = False
    counted_in: float = 1.0

    @property
    def scale(self) -> float:
        """100 for percent, 1 for shares."""
        return 100.0 if self.unit == "percent" else self.counted_in

    def given(self, curve: ndarray) -> ndarray:
        """Values of the evidence in the unit and direction in which the scores were given."""
        if not self.turned:
            return curve * self.scale
        return (-curve if self.unit == "score" else 1 - curve) * self.scale


def check_steps(steps: Iterable[float | int], n_scores: int) -> tuple[float, ...]:
    """The steps as numbers; `InputError` unless there are two or more, one to each score, positive and rising."""
    found = tuple(float(step) for step in steps)
    if not all(map(math.isfinite, found)):
        raise InputError(f"The steps ({', '.join(f'{step:g}' for step in found)}) must be finite numbers.")
    if len(found) != n_scores:
        raise InputError(
            f"There are {len(found)} steps and {n_scores} scores; give one score to each step, base apart."
        )
    if len(found) < MIN_CHECKPOINTS:
        raise InputError(f"A curve needs {MIN_CHECKPOINTS} checkpoints or more beside base; {len(found)} was given.")
    if found[0] <= 0 or any(after <= before for before, after in pairwise(found)):
        raise InputError(
            f"The steps ({', '.join(f'{step:g}' for step in found)}) must be positive and rise; order them."
        )
    return found


def read_scores(
    scores: Any, base_score: Any, *, n: Any, responses: int, se: Any, cut: Any, scale: str, higher_is_better: bool
) -> Scores:
    """The evidence of a curve; the arguments are those of `mechprobe.dynamics.dip_and_recovery`."""
    values, base = _numbers(scores, "scores"), _numbers(base_score, "base_score")
    if base.ndim != values.ndim - 1:
        raise InputError(
            f"base_score has {base.ndim} axes and scores {values.ndim}; give one number and a list, or items [item] and "
            "[checkpoint, item], or [item, response] and [checkpoint, item, response]."
        )
    if values.ndim > 1:
        if base.shape != values.shape[1:]:
            raise InputError(
                f"base_score has the shape {base.shape} and each checkpoint {values.shape[1:]}; make them equal."
            )
        if se is not None or (n is not None and (np.ndim(n) or n != values.shape[1])):
            raise InputError(f"Scores of {values.shape[1]} items bring their own n and errors; leave n and se out.")
        return _items(np.concatenate([base[None], values]), cut, turned=not higher_is_better)
    curve = np.concatenate([base[None], values])
    if se is not None:
        return _with_errors(curve, se, cut, turned=not higher_is_better)
    return _published(curve, n, responses, cut, scale, turned=not higher_is_better)


def read_values(values: Float[ndarray, "score item draw"], *, share: bool, higher_is_better: bool) -> Scores:
    """The evidence of the numbers of every response, base first, where some are undecided (NaN) or are no shares.

    Undecided responses are in no mean. Numbers that are no shares, such as rewards, are counted in their standard deviation over all
    responses, so that the tests do not depend on their unit.

    Raises:
        InputError: Fewer than two items have a number, or a score has none.
    """
    known = ~np.isnan(values)
    values, known = values[:, known.any(axis=(0, 2))], known[:, known.any(axis=(0, 2))]
    if values.shape[1] < 2 or not known.any(axis=(1, 2)).all():
        raise InputError("A model has no decided response, or there are fewer than two items with any.")
    spread = 1.0 if share else float(values[known].std()) or 1.0
    number = known.sum(axis=2)
    mean = np.where(known, values, 0.0).sum(axis=2) / np.maximum(number, 1) / spread
    counted = (number > 0).astype(float)
    better = mean if higher_is_better else (counted - mean if share else -mean)
    unit: Unit = "share" if share else "score"
    return Scores(
        ItemScores(better, counted), unit, values.shape[2], None, None, turned=not higher_is_better, counted_in=spread
    )


def _numbers(values: Any, name: str) -> ndarray:
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} holds something else than numbers, or rows of different lengths; give numbers."
        ) from None
    if not np.isfinite(found).all():
        raise InputError(f"{name} holds a missing or infinite value; leave that checkpoint out, or measure it.")
    return found


def _items(right: ndarray, cut: Any, *, turned: bool) -> Scores:
    if right.min() < 0 or right.max() > 1:
        raise InputError("Scores of items must be between 0 (wrong) and 1 (right).")
    if right.shape[1] < 2:
        raise InputError("There is one item; give two or more, or a published score with n.")
    draws = right if right.ndim == 3 else right[..., None]
    draws = 1 - draws if turned else draws
    responses = draws.shape[2]
    whole = np.ones(draws.shape[:2])
    scores = ItemScores(draws.mean(axis=2), whole)
    if cut is None:
        return Scores(scores, "share", responses, None, None, turned)
    was_cut = _numbers(cut, "cut").astype(float)
    if was_cut.shape != right.shape:
        raise InputError(
            f"cut has the shape {was_cut.shape} and the scores with base first {right.shape}; make them equal."
        )
    was_cut = was_cut if was_cut.ndim == 3 else was_cut[..., None]
    ended = 1 - was_cut
    among = ItemScores((draws * ended).mean(axis=2), ended.mean(axis=2))
    return Scores(scores, "share", responses, among, ItemScores(was_cut.mean(axis=2), whole), turned)


def _with_errors(curve: ndarray, se: Any, cut: Any, *, turned: bool) -> Scores:
    if cut is not None:
        raise InputError("cut needs right and wrong responses; leave it out with se.")
    errors = np.broadcast_to(_numbers(se, "se"), curve.shape)
    if (errors <= 0).any():
        raise InputError("se must be positive; give the standard error of each score.")
    noise = Noise(float(errors[0]), tuple(errors[1:].tolist()))
    return Scores(ScoresWithErrors(-curve if turned else curve, noise), "score", 1, None, None, turned)


def _published(curve: ndarray, n: Any, responses: int, cut: Any, scale: str, *, turned: bool) -> Scores:
    if n is None:
        raise InputError("Published scores need n, the number of problems, or se, their standard errors.")
    problems = _numbers(n, "n")
    if problems.shape not in ((), curve.shape):
        raise InputError(
            f"n has the shape {problems.shape}; give one number of problems, or one for base and each checkpoint."
        )
    sizes = np.broadcast_to(problems, curve.shape)
    if not all((count >= 1).all() and (count <= MOST).all() for count in (sizes, np.asarray(responses))):
        raise InputError(f"n and responses must lie between 1 and {MOST:,}: n problems, and the k of avg@k.")
    percent = scale == "percent" or (scale == "auto" and curve.max() > 1)
    limit = 100.0 if percent else 1.0
    if curve.min() < 0 or curve.max() > limit:
        raise InputError(
            f"A score of {curve.max() if curve.max() > limit else curve.min():g} is no {'percentage' if percent else 'share'}; "
            "shares lie between 0 and 1, percentages between 0 and 100. Give se for scores of another kind."
        )
    shares, sizes = curve / limit, sizes * responses
    better = 1 - shares if turned else shares
    whole, problems = PublishedShares(better, sizes, int(sizes.max() // responses)), int(sizes.max() // responses)
    unit: Unit = "percent" if percent else "share"
    if cut is None:
        return Scores(whole, unit, responses, None, None, turned)
    cuts = _numbers(cut, "cut") / limit
    if cuts.shape != curve.shape or cuts.min() < 0 or (cuts >= 1).any() or (shares > 1 - cuts + 1e-9).any():
        raise InputError(
            "cut must hold the share of cut responses of base and of each checkpoint, below 1, and no more responses may be "
            "right than ended."
        )
    among = np.minimum(1.0, shares / (1 - cuts))
    ended = PublishedShares(1 - among if turned else among, sizes * (1 - cuts), problems)
    return Scores(whole, unit, responses, ended, PublishedShares(cuts, sizes, problems), turned)
