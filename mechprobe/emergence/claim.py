"""The claim of arXiv 2604.25011: SFT is early and specialized, RL is restrained and continuing.

The paper gives no test; the four comparisons here are specific to mechprobe. Each is a difference between two kinds of training,
so the unit is a training run from its own seed: features of one dictionary, and dictionaries of the same runs, say nothing about
how another run would differ. With fewer than three runs on a side nothing is claimed.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mechprobe.emergence.curves import Curves
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.statistics import welch_difference

MIN_SEEDS = 3
"""Training seeds of each kind of training that a claim needs."""
RULE = (
    "Each word is a difference SFT - RL of a mean over training runs, each from its own seed. Early: the progress at which half of "
    "the final change of the decoder norms is reached (below 0). Specialized: the share of live features that both NRN beyond 2/3 or "
    "1/3 and latent scaling call specific at the end (above 0). Restrained: mean |NRN - 1/2| at the end (above 0). Continuing: the "
    "overlap of the sets of highest NRN at the last two checkpoints (above 0). A word holds if the 95 % interval of the difference "
    "(Welch t over training seeds) is clear of 0 on that side in the dictionary of every seed. With fewer than "
    f"{MIN_SEEDS} training seeds of each kind, nothing is claimed. Progress is the optimizer step over the last one; where a step is "
    "unknown, early is not judged."
)
UNDATED = "the optimizer step of a checkpoint is unknown"
"""Why a word about time is not judged."""
_CLAUSES = (
    ("early", "half_norm", -1),
    ("specialized", "last_confirmed", 1),
    ("restrained", "last_departure", 1),
    ("continuing", "last_overlap", 1),
)


class Clause(Result):
    """One word of the claim.

    Attributes:
        number: The number that is compared, see `mechprobe.emergence.curves`.
        sft: Its mean over SFT's training runs, first seed of the dictionary; ``rl`` over those of RL.
        differences: SFT − RL with its interval over training runs, per seed of the dictionary; ends are NaN with fewer than two
            runs of a kind.
        holds: Whether every interval is clear of 0 on the claimed side; None where there are too few training seeds for a claim, and
            for ``early`` where an optimizer step is unknown.
    """

    word: str
    number: str
    sft: Number
    rl: Number
    differences: tuple[IntervalNumbers, ...]
    holds: bool | None


class Claim(Result):
    """The four words, the finding in sentences, and the rule by which the words were judged."""

    arms: dict[str, tuple[str, ...]]
    """``sft`` and ``rl`` → the arms that are its training runs."""
    clauses: tuple[Clause, ...]
    sentences: tuple[str, ...]
    rule: str = RULE


def training_runs(arms: Sequence[str], kind: str) -> tuple[str, ...]:
    """The arms that are runs of one kind of training, from different seeds: ``rl``, ``rl-seed1``, ``rl-seed2``.

    Example:
        >>> training_runs(["rl", "rl-seed1", "rl-zero", "sft"], "rl")
        ('rl', 'rl-seed1')
    """
    return tuple(arm for arm in arms if re.fullmatch(rf"{re.escape(kind)}(-seed\d+)?", arm))


def judge(curves: Mapping[str, Sequence[Curves]], kinds: tuple[str, str]) -> Claim | None:
    """The claim on two kinds of training, given the curves of each arm by seed of the dictionary; None if one has no arm."""
    arms = {kind: training_runs(list(curves), kind) for kind in kinds}
    if not all(arms.values()):
        return None
    sft, rl = ([curves[arm] for arm in found] for found in arms.values())
    enough = min(len(sft), len(rl)) >= MIN_SEEDS
    clauses = tuple(_clause(word, number, sign, sft, rl, enough=enough) for word, number, sign in _CLAUSES)
    return Claim(arms=arms, clauses=clauses, sentences=_sentences(clauses, arms) if enough else _too_few(arms))


def _clause(
    word: str, number: str, sign: int, sft: Sequence[Sequence[Curves]], rl: Sequence[Sequence[Curves]], *, enough: bool
) -> Clause:
    sides = [np.array([[float(each.values[number][0]) for each in run] for run in runs]) for runs in (sft, rl)]
    differences = tuple(welch_difference(one, other) for one, other in zip(sides[0].T, sides[1].T, strict=True))
    clear = all((item.low if sign > 0 else -item.high) > 0 for item in differences)
    means = [float(side[:, 0].mean()) for side in sides]
    judged = enough and all(math.isfinite(item.value) for item in differences)
    return Clause(
        word=word, number=number, sft=means[0], rl=means[1], differences=differences, holds=clear if judged else None
    )


def _too_few(arms: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    found = " and ".join(f"{len(runs)} of {kind}" for kind, runs in arms.items())
    return (
        f"No claim: there are training seeds {found}, and a claim needs {MIN_SEEDS} of each, because two runs from one seed each may "
        "differ by their seeds alone. The curves describe these runs.",
    )


def _sentences(clauses: Sequence[Clause], arms: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    early, specialized, restrained, continuing = clauses
    sft, rl = arms
    half = f"it reaches half of its change at {_pct(early.sft)} of training, {rl} at {_pct(early.rl)}"
    first = (
        f"{sft} is {_word(early)} ({half if early.holds is not None else UNDATED}) and {_word(specialized)} ({_pct(specialized.sft, 1)} of the live features are confirmed specific, "
        f"{_pct(specialized.rl, 1)} in {rl}): {_verdict(early, specialized)}."
    )
    second = (
        f"{rl} is {_word(restrained)} (mean |NRN - 1/2| is {restrained.rl:.3f}, {restrained.sft:.3f} in {sft}) and "
        f"{_word(continuing)} (its last two checkpoints share {_pct(continuing.rl)} of the features of highest NRN, those of "
        f"{sft} {_pct(continuing.sft)}): {_verdict(restrained, continuing)}."
    )
    units = " and ".join(f"{len(runs)} of {kind}" for kind, runs in arms.items())
    return first, second, f"Training seeds: {units}."


def _word(clause: Clause) -> str:
    if clause.holds is None:
        return f"not judged as {clause.word}"
    return clause.word if clause.holds else f"not shown to be {clause.word}"


def _verdict(*clauses: Clause) -> str:
    count = sum(bool(clause.holds) for clause in clauses)
    return {0: "the claim does not show", 1: "half of the claim shows", 2: "the claim shows"}[count]


def _pct(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
