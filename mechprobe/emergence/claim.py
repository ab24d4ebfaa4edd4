"""The claim of arXiv 2604.25011: SFT is early and specialized, RL is restrained and continuing.

The paper gives no test; the four comparisons here are specific to mechprobe. Each is a difference between the two arms that
must have the claimed sign, with a 95 % bootstrap interval (over features) clear of 0, in the dictionary of every seed.
"""

from collections.abc import Mapping, Sequence

from mechprobe.emergence.curves import Curves, difference
from mechprobe.results import IntervalNumbers, Number, Result

RULE = (
    "Each word is a difference SFT - RL over live features. Early: the progress at which half of the final change of the "
    "decoder norms is reached (below 0). Specialized: the share of features that both NRN beyond 2/3 or 1/3 and latent scaling "
    "call specific at the end (above 0). Restrained: mean |NRN - 1/2| at the end (above 0). Continuing: the overlap of the sets "
    "of highest NRN at the last two checkpoints (above 0). A word holds if its 95 % bootstrap interval over features is clear "
    "of 0 on that side in the dictionary of every seed."
)
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
        sft: Its value in the SFT arm, first seed; ``rl`` in the RL arm.
        differences: SFT − RL with its interval, per seed.
        holds: Whether every interval is clear of 0 on the claimed side.
    """

    word: str
    number: str
    sft: Number
    rl: Number
    differences: tuple[IntervalNumbers, ...]
    holds: bool


class Claim(Result):
    """The four words, the finding in two sentences, and the rule by which the words were judged."""

    arms: tuple[str, str]
    """Names of the SFT and the RL arm."""
    clauses: tuple[Clause, ...]
    sentences: tuple[str, str]
    rule: str = RULE


def judge(curves: Mapping[str, Sequence[Curves]], arms: tuple[str, str]) -> Claim | None:
    """The claim on two arms, given the curves of each seed; None if one of the arms is missing."""
    if any(arm not in curves for arm in arms):
        return None
    sft, rl = (curves[arm] for arm in arms)
    clauses = tuple(_clause(word, number, sign, sft, rl) for word, number, sign in _CLAUSES)
    return Claim(arms=arms, clauses=clauses, sentences=_sentences(clauses, arms))


def _clause(word: str, number: str, sign: int, sft: Sequence[Curves], rl: Sequence[Curves]) -> Clause:
    differences = tuple(difference(one, other, number) for one, other in zip(sft, rl, strict=True))
    clear = all((item.low if sign > 0 else -item.high) > 0 for item in differences)
    first_sft, first_rl = (float(group[0].values[number][0]) for group in (sft, rl))
    return Clause(word=word, number=number, sft=first_sft, rl=first_rl, differences=differences, holds=bool(clear))


def _sentences(clauses: Sequence[Clause], arms: tuple[str, str]) -> tuple[str, str]:
    early, specialized, restrained, continuing = clauses
    sft, rl = arms
    first = (
        f"{sft} is {_word(early)} (it reaches half of its change at {_pct(early.sft)} of training, {rl} at "
        f"{_pct(early.rl)}) and {_word(specialized)} ({_pct(specialized.sft, 1)} of the live features are confirmed specific, "
        f"{_pct(specialized.rl, 1)} in {rl}): {_verdict(early, specialized)}."
    )
    second = (
        f"{rl} is {_word(restrained)} (mean |NRN - 1/2| is {restrained.rl:.3f}, {restrained.sft:.3f} in {sft}) and "
        f"{_word(continuing)} (its last two checkpoints share {_pct(continuing.rl)} of the features of highest NRN, those of "
        f"{sft} {_pct(continuing.sft)}): {_verdict(restrained, continuing)}."
    )
    return first, second


def _word(clause: Clause) -> str:
    return clause.word if clause.holds else f"not shown to be {clause.word}"


def _verdict(*clauses: Clause) -> str:
    count = sum(clause.holds for clause in clauses)
    return {0: "the claim does not show", 1: "half of the claim shows", 2: "the claim shows"}[count]


def _pct(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
