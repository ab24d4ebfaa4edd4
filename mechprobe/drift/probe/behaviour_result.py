"""Typed records of skill profiles and of their course over checkpoints."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from mechprobe.drift.probe.profile import Norm
from mechprobe.results import IntervalNumbers, Number, Result

NormNumbers = Annotated[Norm, BeforeValidator(lambda value: Norm(*value) if isinstance(value, list) else value)]
"""A `Norm`, which JSON writes as a list."""


class Score(Result):
    """The score of one model on one skill or cell.

    Attributes:
        raw: Share of right responses with its interval over items.
        corrected: The same on the scale on which a random answerer has 0.
        chance: Share of right answers of a random answerer; 0 where it is not known.
    """

    raw: IntervalNumbers
    corrected: IntervalNumbers
    chance: Number


class Gain(Result):
    """The change of one skill from base to another model, paired by item.

    Attributes:
        raw: Change of the share of right responses.
        corrected: The same on the scale on which a random answerer has 0.
        p: Exact sign-flip test over items (McNemar's for one response each).
        p_holm: ``p`` adjusted by Holm's method over the skills of the model.
    """

    raw: IntervalNumbers
    corrected: IntervalNumbers
    p: Number
    p_holm: Number


class Point(Result):
    """One checkpoint of an arm; numbers are of chance-corrected profiles over the skills, see `mechprobe.drift.probe.profile`.

    Attributes:
        model: Name of the checkpoint.
        progress: Share of training done.
        drift_l1: Distance from base; ``drift_l2`` in the L2 norm.
        step_l1: Distance from the checkpoint before; ``step_l2`` in the L2 norm.
        lost: Sum over the skills of how far each is below base.
        imbalance: Standard deviation of the gains over skills; ``gain_range`` is the largest minus the smallest.
        jaggedness: Mean distance of the gains from their mean.
        entropy: Normalized entropy of the positive gains with its bootstrap interval; NaN where no gain is clear of 0.
    """

    model: str
    progress: Number
    drift_l1: NormNumbers
    drift_l2: NormNumbers
    step_l1: NormNumbers
    step_l2: NormNumbers
    lost: NormNumbers
    imbalance: NormNumbers
    gain_range: NormNumbers
    jaggedness: NormNumbers
    entropy: IntervalNumbers


NO_FALL = "No skill falls below base by more than delta and two standard errors."
"""What is said of arms whose `ArmCourse.falls` is empty."""


class Collapse(Result):
    """A skill that falls below base.

    Attributes:
        kind: ``persistent``, ``transient`` or ``at the end``, see `mechprobe.drift.probe.profile.collapse_kind`.
        checkpoints: Where it is below base by more than max(delta, 2 standard errors).
        confirmed: Whether some fall stands at 95 % over all skills and checkpoints of the arm at once.
    """

    skill: str
    kind: Literal["persistent", "transient", "at the end"]
    checkpoints: tuple[str, ...]
    confirmed: bool


class ArmCourse(Result):
    """The course of one arm.

    Attributes:
        points: Its checkpoints in order of training.
        spaced_by: ``steps``, or ``checkpoints`` where a step is unknown.
        path_l1: Sum of the steps from base on; ``path_l2`` in the L2 norm.
        wandering: Path length over net drift (L1), 1 for a straight path; NaN where the net drift is not clear of 0.
        collapses: Skills that fall below base.
    """

    arm: str
    points: tuple[Point, ...]
    spaced_by: Literal["steps", "checkpoints"]
    path_l1: NormNumbers
    path_l2: NormNumbers
    wandering: IntervalNumbers
    collapses: tuple[Collapse, ...]

    def falls(self) -> list[str]:
        """What falls below base, as sentences: the confirmed skills, then those of single comparisons; empty without any."""
        titles = {
            True: "falls below base, confirmed over all skills and checkpoints at once",
            False: "below base at single comparisons only (not confirmed)",
        }
        found = {
            sure: [f"{c.skill} ({c.kind}; {', '.join(c.checkpoints)})" for c in self.collapses if c.confirmed is sure]
            for sure in titles
        }
        return [f"{self.arm}: {titles[sure]}: {'; '.join(skills)}." for sure, skills in found.items() if skills]


class Transfer(Result):
    """The transferability index of one model (arXiv 2507.00432), in percent.

    Attributes:
        trained: Mean gain of the trained tasks, raw; ``other``: of the others.
        index: 100 · mean relative gain of the others / that of the trained tasks, with its bootstrap interval; NaN where
            ``reason`` says why there is none.
        by_task: The index of each task alone.
        absolute: 100 · ``other`` / ``trained`` (ours), which a low score of base does not spoil; NaN where the gain on the trained
            tasks is not clearly above 0.
        reason: Why there is no index; empty where there is one.
    """

    trained: IntervalNumbers
    other: IntervalNumbers
    index: IntervalNumbers
    by_task: dict[str, IntervalNumbers]
    absolute: IntervalNumbers
    reason: str


class Contrast(Result):
    """The last checkpoints of two arms.

    Attributes:
        first: Name of the first arm's last checkpoint; ``second``: of the second.
        drift: Drift (L1) of the first minus that of the second, with an interval of at least 95 %.
        gains: Skill → score of the first minus that of the second (chance-corrected, paired by item).
    """

    first: str
    second: str
    drift: IntervalNumbers
    gains: dict[str, IntervalNumbers]


class Behaviour(Result):
    """Everything that is computed from one score of the items.

    Attributes:
        skills: Skill → number of items; ``cells``: cell → number of items.
        profiles: Model → skill → score; ``cell_profiles``: model → cell → score.
        gains: Model other than base → skill → gain.
        arms: Arm → its course. A model outside all arms is an arm of one checkpoint.
        transfer: Model → transferability index; empty where no task is named as trained.
        contrasts: The last checkpoints of every two arms.
    """

    skills: dict[str, int]
    cells: dict[str, int]
    profiles: dict[str, dict[str, Score]]
    cell_profiles: dict[str, dict[str, Score]]
    gains: dict[str, dict[str, Gain]]
    arms: dict[str, ArmCourse]
    transfer: dict[str, Transfer]
    contrasts: tuple[Contrast, ...]
