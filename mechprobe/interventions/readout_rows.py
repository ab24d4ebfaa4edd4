"""Typed records on read-outs in ``results.json``: which one transplants use and why, and what they do under the other."""

from mechprobe.interventions.result_rows import Change
from mechprobe.results import Number, Result
from mechprobe.types import ReadoutMode


class ReadoutShare(Result):
    """How much of the difference between two models transplants write under one read-out.

    With d the difference of the residuals of a token and w what a transplant writes there, the share is
    1 − Σ ‖d − w‖² / Σ ‖d‖² over tokens; NaN where the models do not differ.

    Attributes:
        selected: Share of the transplant of the selected set.
        every: Share of the transplant of every feature.
    """

    selected: Number
    every: Number


class ReadoutChoice(Result):
    """The read-out of transplants that a run chose, see `mechprobe.interventions.conditions.readout_choice`.

    Attributes:
        chosen: ``joint`` or ``swap``.
        n_samples, n_tokens: Samples of the selection halves, and the tokens of their prompts and responses that were read; 0
            where no selection half was given.
        tolerance: Difference of the shares up to which the two tie.
        shares: Read-out → its shares; empty where no token was read.
        sentence: The choice in words.
    """

    chosen: ReadoutMode
    n_samples: int
    n_tokens: int
    tolerance: float
    shares: dict[ReadoutMode, ReadoutShare]
    sentence: str


class ReadoutDifference(Result):
    """The effects of a transplant under the read-out of the verdict and under the other, on one task or on the pooled row.

    ``difference`` is ``effect`` minus ``effect_other`` on the same samples; `compare_readouts` gives the rule of ``disagree``.
    """

    task: str
    n: int
    effect: Change
    effect_other: Change
    difference: Change
    disagree: bool


class ReadoutAgreement(Result):
    """Whether the transplant of the selected set does the same in one host under the read-out of the verdict and the other.

    There is one row per held-out task, then the pooled row. The sentence says where the two disagree; else it is empty.
    """

    model: str
    edit: str
    features: str
    readout: str
    other: str
    rows: list[ReadoutDifference]
    sentence: str
