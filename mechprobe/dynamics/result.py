"""Typed results of dip-and-recovery: one curve, its lengths and cut responses, and the stage's file."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mechprobe.dynamics.labels import CurveTests, Label
from mechprobe.environment import require
from mechprobe.files import read_json
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.stage_folder import require_stage

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE = "dynamics.json"


class CutCourse(Result):
    """Responses that were cut, and whether they alone make the dip.

    Attributes:
        share: Share of cut responses, base first.
        ended_scores: Right responses as a share of those that ended, base first, in the unit of the scores.
        ended_depth: Depth of that curve.
        ended_dip_p: p-value of its dip.
        cut_rise_p: One-sided p-value of the share of cut responses at the trough of all responses against base.
    """

    share: tuple[Number, ...]
    ended_scores: tuple[Number, ...]
    ended_depth: Number
    ended_dip_p: Number
    cut_rise_p: Number


class LengthCourse(Result):
    """How response length moves beside the score. All ratios are of mean lengths; the definitions are ours.

    Attributes:
        lengths: Mean length of the responses, base first.
        surge_ratio: Largest length of a checkpoint / that of base.
        surge_step: Step of the largest length.
        contraction_ratio: Last length / largest.
        rise_ratio: Last length / smallest from the surge on.
        late_rerise: Whether length rises again after the surge: by a paired t test against the smallest length, Bonferroni-adjusted
            for its choice, where lengths of items are known, and otherwise whether ``rise_ratio`` reaches 1.1 (no test is possible).
        rerise_p: The p-value; NaN without lengths of items.
        lag: Trough step − surge step; above 0 the length peaks first.
        spearman: Rank correlation of length and score over base and checkpoints, with the score turned where lower is better; NaN
            where one is constant.
    """

    lengths: tuple[Number, ...]
    surge_ratio: Number
    surge_step: Number
    contraction_ratio: Number
    rise_ratio: Number
    late_rerise: bool
    rerise_p: Number
    lag: Number
    spearman: Number


class DipResult(Result):
    """One curve of scores over training, see `mechprobe.dynamics.dip_and_recovery`. Scores are in the unit in which they were given.

    Where lower scores are better, depths and gains count in the direction of better: a depth above 0 is a score above base.

    Attributes:
        steps: Step of each checkpoint; ``scores`` are theirs.
        higher_is_better: Direction of the scores.
        unit: ``share``, ``percent``, or ``score`` for scores with standard errors of their own.
        n: Problems; None where standard errors were given. ``responses`` to each.
        items: Whether the test used right and wrong of every item.
        label: The class, from ``tests`` at level ``alpha``; a `mechprobe.dynamics.labels.MEANING` says what each means.
        depth: Base − lowest score. Its interval is that of the difference at the trough, without a correction for the choice of it.
        trough_step: Step of the lowest score, the first of equal ones.
        recovery_step: First step after the trough whose score is not below base by a one-sided test; None without dip or recovery.
        final_gain: Last score − base.
        peak_gain: Highest score of a checkpoint − base.
        recovered_share: (last score − lowest) / depth; NaN where nothing is below base.
        late_decline: Highest score of a checkpoint − last score.
        tests: The p-values and z-values behind the label; Holm-adjusted by `mechprobe.dynamics.adjust_labels`.
        adjusted_over: Number of curves over which the p-values are adjusted.
        resampled_labels: Label → resampled curves that have it, each curve for itself.
        cut: Cut responses, where they are known.
        length: Response lengths, where they are known.
    """

    steps: tuple[Number, ...]
    scores: tuple[Number, ...]
    base_score: Number
    unit: Literal["share", "percent", "score"]
    n: int | None
    responses: int
    items: bool
    errors: tuple[Number, ...]
    """Standard errors without the choice of items, base first, in the unit of the scores."""
    alpha: Number
    label: Label
    depth: Number
    depth_interval: IntervalNumbers
    trough_step: Number
    recovery_step: Number | None
    final_gain: Number
    final_gain_interval: IntervalNumbers
    peak_gain: Number
    peak_step: Number
    recovered_share: Number
    late_decline: Number
    tests: CurveTests
    higher_is_better: bool = True
    adjusted_over: int = 1
    resampled_labels: dict[str, int] = Field(default_factory=dict)
    cut: CutCourse | None = None
    length: LengthCourse | None = None

    @property
    def trough_score(self) -> float:
        """The worst score of a checkpoint."""
        return self.scores[self.steps.index(self.trough_step)]

    @property
    def dipped(self) -> bool:
        """Whether a stretch below base is shown."""
        return self.tests.dip_p <= self.alpha

    @property
    def recovered(self) -> bool:
        """Whether the label says that the curve came back to base or above."""
        return self.label in ("dip_recover_exceed", "dip_recover_to_base")

    @property
    def cut_explains(self) -> bool | None:
        """Whether cut responses alone make the dip.

        The score dips, the score among responses that ended does not, and more responses are cut at the trough than at base. None
        where there is no dip, or cut responses are unknown.
        """
        if self.cut is None or not self.dipped:
            return None
        return self.cut.ended_dip_p > self.alpha and self.cut.cut_rise_p <= self.alpha

    @property
    def label_share(self) -> float:
        """Share of resampled curves, each for itself, that have the label; NaN without resampling."""
        total = sum(self.resampled_labels.values())
        return self.resampled_labels.get(self.label, 0) / total if total else float("nan")

    @property
    def unstable(self) -> bool:
        """Whether fewer than half of the resampled curves have the label."""
        return self.label_share < 0.5

    @property
    def words(self) -> str:
        """The label, and whether cut responses make the dip."""
        return f"{self.label} (cut responses)" if self.cut_explains else self.label

    def _in_short(self) -> str:
        return (
            f"{self.words}, depth={self.depth:.4g} at step {self.trough_step:g}, final_gain={self.final_gain:.4g}, "
            f"dip_p={self.tests.dip_p:.2g}, n={self.n}"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """One row per score: ``step`` (0 for base), ``score``, ``error``, and ``cut``, ``ended_score``, ``length`` where known."""
        columns: dict[str, tuple[float, ...]] = {
            "step": (0.0, *self.steps), "score": (self.base_score, *self.scores), "error": self.errors
        }  # fmt: skip
        if self.cut is not None:
            columns |= {"cut": self.cut.share, "ended_score": self.cut.ended_scores}
        if self.length is not None:
            columns |= {"length": self.length.lengths}
        return require("pandas", "The table of a curve").DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        derived = {
            "dipped": self.dipped, "recovered": self.recovered, "cut_explains": self.cut_explains, "label_share": self.label_share,
            "unstable": self.unstable,
        }  # fmt: skip
        return {**super().to_dict(), **derived}


_DERIVED = ("dipped", "recovered", "cut_explains", "label_share", "unstable")


class Dynamics(Result):
    """The result of the ``dynamics`` stage.

    Attributes:
        source: Folder of outcomes or file of published scores.
        curves: ``arm/task``, or the name of a published curve → its result. Labels are Holm-adjusted over all.
        spaced_by: Arm → ``steps``, or ``checkpoints`` where a step is unknown and checkpoints count 1, 2, 3...
        notes: What was left out, as sentences.
    """

    folder: Path = Field(exclude=True)
    source: str
    alpha: Number
    curves: dict[str, DipResult]
    spaced_by: dict[str, Literal["steps", "checkpoints"]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, int]:
        """Label → curves."""
        return dict(Counter(curve.label for curve in self.curves.values()))

    def _in_short(self) -> str:
        return f"{len(self.curves)} curves of {self.source}: {self.labels}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per curve: label, depth, steps, gains and p-values."""
        names = (
            "label",
            "depth",
            "trough_step",
            "recovery_step",
            "final_gain",
            "peak_gain",
            "recovered_share",
            "late_decline",
        )
        rows = [
            {
                "curve": name,
                **{key: getattr(curve, key) for key in (*names, "cut_explains", "n")},
                "dip_p": curve.tests.dip_p,
            }
            for name, curve in self.curves.items()
        ]
        return require("pandas", "The table of curves").DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``dynamics.json``."""
        return {**super().to_dict(), "curves": {name: curve.to_dict() for name, curve in self.curves.items()}}

    @classmethod
    def load(cls, path: Path | str) -> "Dynamics":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "dynamics")
        data = read_json(folder / RESULT_FILE)
        curves = {
            name: {key: value for key, value in curve.items() if key not in _DERIVED}
            for name, curve in data.get("curves", {}).items()
        }
        return cls.checked({**data, "curves": curves, "folder": folder}, folder / RESULT_FILE)
