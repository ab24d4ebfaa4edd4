"""Whether the claim of arXiv 2604.25011 shows: SFT early and specialized, RL restrained and continuing.

The paper gives no test; the four comparisons here are ours. Each is a difference between the two arms that must have
the claimed sign, with a 95 % bootstrap interval (over features) clear of 0, in the dictionary of every seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechprobe.emergence.curves import Curves, difference
from mechprobe.statistics import Interval

RULE = (
    "Each word is a difference SFT - RL over live features: early, progress at which half of the final change of the "
    "decoder norms is there (below 0); specialized, share of features that NRN beyond 2/3 or 1/3 and latent scaling call specific at the end (above 0); "
    "restrained, mean |NRN - 1/2| at the end (above 0); continuing, overlap of the sets of highest NRN at the last two "
    "checkpoints (above 0). A word holds when its 95 % bootstrap interval over features is clear of 0 on that side for "
    "the dictionary of every seed."
)
_CLAUSES = (
    ("early", "half_norm", -1),
    ("specialized", "last_confirmed", 1),
    ("restrained", "last_departure", 1),
    ("continuing", "last_overlap", 1),
)


@dataclass(frozen=True)
class Clause:
    """One word of the claim.

    Attributes:
        word: The paper's.
        number: The number compared, of `mechprobe.emergence.curves`.
        sft: It in the SFT arm, first seed.
        rl: It in the RL arm, first seed.
        differences: SFT − RL with interval, per seed.
        holds: Whether every interval is clear of 0 on the claimed side.
    """

    word: str
    number: str
    sft: float
    rl: float
    differences: tuple[Interval, ...]
    holds: bool


@dataclass(frozen=True)
class Claim:
    """The four words, and two sentences.

    Attributes:
        arms: Names of the SFT and the RL arm.
        clauses: The four words.
        sentences: What was found, whichever way.
        rule: How it was judged.
    """

    arms: tuple[str, str]
    clauses: tuple[Clause, ...]
    sentences: tuple[str, str]
    rule: str = RULE


def judge(curves: Mapping[str, Sequence[Curves]], arms: tuple[str, str]) -> Claim | None:
    """The claim on two arms (curves per seed); None where one of them is missing."""
    if any(arm not in curves for arm in arms):
        return None
    sft, rl = (curves[arm] for arm in arms)
    clauses = []
    for word, number, sign in _CLAUSES:
        found = tuple(difference(one, other, number) for one, other in zip(sft, rl, strict=True))
        clear = all((item.low if sign > 0 else -item.high) > 0 for item in found)
        one, other = (float(group[0].values[number][0]) for group in (sft, rl))
        clauses.append(Clause(word, number, one, other, found, bool(clear)))
    return Claim(arms, tuple(clauses), _sentences(clauses, arms))


def _sentences(clauses: Sequence[Clause], arms: tuple[str, str]) -> tuple[str, str]:
    early, specialized, restrained, continuing = clauses
    sft, rl = arms
    first = (
        f"{sft} is {_word(early)} (half of its change is there at {_pct(early.sft)} of training, {rl}'s at "
        f"{_pct(early.rl)}) and {_word(specialized)} ({_pct(specialized.sft, 1)} of the live features are confirmed specific, "
        f"{rl} {_pct(specialized.rl, 1)}): {_shown(early, specialized)}."
    )
    second = (
        f"{rl} is {_word(restrained)} (mean |NRN - 1/2| {restrained.rl:.3f}, {sft} {restrained.sft:.3f}) and "
        f"{_word(continuing)} (its last two checkpoints share {_pct(continuing.rl)} of the features of highest NRN, "
        f"{sft}'s {_pct(continuing.sft)}): {_shown(restrained, continuing)}."
    )
    return first, second


def _word(clause: Clause) -> str:
    return clause.word if clause.holds else f"not shown to be {clause.word}"


def _shown(*clauses: Clause) -> str:
    count = sum(clause.holds for clause in clauses)
    return {0: "the claim does not show", 1: "half of the claim shows", 2: "the claim shows"}[count]


def _pct(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
