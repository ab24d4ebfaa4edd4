"""The result of the ``emergence`` stage: the typed content of ``emergence.json``, and the feature tables beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mechprobe.emergence.claim import Claim
from mechprobe.emergence.overlap import SeedSpread, over_seeds
from mechprobe.errors import ArtifactError
from mechprobe.files import read_frame, read_json
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.stage_folder import require_stage

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE = "emergence.json"

Matrix = tuple[tuple[Number, ...], ...]
"""One row and one column for each checkpoint."""


class ArmCourse(Result):
    """One arm in the dictionary of one seed.

    Attributes:
        checkpoints: Model names in order of training.
        labels: Short names of the checkpoints.
        progress: Share of training done at base and at each checkpoint.
        spaced_by: ``steps``, or ``checkpoints`` if a step is unknown; nothing is dated then.
        steps: Optimizer step of each checkpoint; empty if one is unknown.
        n_alive: Features that fire.
        kinds: Kind → features of that kind, see `mechprobe.emergence.trajectories`.
        curves: The numbers of `mechprobe.emergence.curves`, with intervals over features.
        overlap: |A ∩ B| / top of the sets of highest NRN, for every two checkpoints.
        jaccard: |A ∩ B| / |A ∪ B|.
        churn: Share of each checkpoint's set that the next one lacks.
        top: Size of the sets.
        chance: Overlap of two random sets of that size.
    """

    name: str
    seed: int
    base: str
    checkpoints: tuple[str, ...]
    labels: tuple[str, ...]
    progress: tuple[float, ...]
    spaced_by: Literal["steps", "checkpoints"]
    steps: tuple[int, ...] = ()
    n_alive: int
    kinds: dict[str, int]
    curves: dict[str, tuple[IntervalNumbers, ...]]
    overlap: Matrix
    jaccard: Matrix
    churn: tuple[Number, ...]
    top: int
    chance: Number


class PairOverlap(Result):
    """What two dictionaries share, see `PairCourse`."""

    overlap: Number
    found_share: Number


class PairCourse(Result):
    """One arm in dictionaries of base and one checkpoint each, matched by decoder, in one repetition.

    Attributes:
        seed: Seed of the dictionaries over all checkpoints in the same repetition. Each pairwise dictionary has its own.
        overlap: Matched |A ∩ B| / top of the sets of highest NRN; the row's features are looked for in the column's.
        found_share: Share of the row's live features that the column's dictionary contains.
        ceiling: The same for two dictionaries of the last checkpoint that differ only in their seed.
        fve: Smallest FVE of each dictionary on held-out tokens.
        top: Size of the sets.
    """

    name: str
    seed: int
    checkpoints: tuple[str, ...]
    overlap: Matrix
    found_share: Matrix
    ceiling: PairOverlap
    fve: tuple[Number, ...]
    top: int
    min_cosine: float


class CausalCourse(Result):
    """Causal strength over one arm (RelIE, arXiv 2509.05291) in the dictionary of the first seed.

    Intervals are bootstrap intervals over groups of held-out samples (`mechprobe.selection.rankings.relie`); their
    n is the number of groups, and their ends are NaN for a single group. Intervals, biases and ``departure`` are specific
    to mechprobe.

    Attributes:
        models: Base and the checkpoints.
        n_groups: Prompts of these samples, the unit of the bootstrap.
        metric: Mean metric of each model (log-probability of the response tokens, in nats).
        departure: Change of the effects' sizes, Σ||IE_c| − |IE_base|| / Σ(|IE_c| + |IE_base|).
        departure_bias: Mean of the draws minus the value. Sampling noise increases absolute differences: if the bias is
            clearly above 0, the value itself is too high by about as much or more.
        rank_correlation: Spearman correlation of NRN with pairwise RelIE, over the features in the upper half of effects.
        rank_correlation_bias: Mean of the draws minus the value. Sampling noise draws a correlation towards 0.
        completeness_gap: Share of the metric's change that the steps of the path miss, per model.
    """

    name: str
    models: tuple[str, ...]
    n_samples: int
    n_groups: int
    draws: int
    metric: tuple[Number, ...]
    departure: tuple[IntervalNumbers, ...]
    departure_bias: tuple[Number, ...]
    rank_correlation: tuple[IntervalNumbers, ...]
    rank_correlation_bias: tuple[Number, ...]
    completeness_gap: tuple[Number, ...]

    @property
    def interval_note(self) -> str:
        """A sentence on the unit of the intervals, or on why there are none."""
        if self.n_groups == 1:
            return "RelIE has no interval, because all its samples answer one prompt."
        return (
            f"Intervals of RelIE: 95 % bootstrap over the {self.n_groups} prompts of {self.n_samples} held-out samples, "
            "in one dictionary."
        )


class DictionaryQuality(Result):
    """FVE per model, L0 and dead share of a trained dictionary on held-out tokens, and how it was trained."""

    fve: dict[str, Number]
    l0: Number
    dead_frac: Number
    device: str
    mode: str


class Emergence(Result):
    """The result of `mechprobe.emergence`.

    Attributes:
        arms: Arm → its course in the dictionary of each seed.
        pairs: Arm → its course in the pairwise dictionaries of each seed; empty if they were not trained.
        causal: Arm → RelIE; empty if it was not measured.
        quality: Dictionary → quality on held-out tokens.
        claim: The claim of arXiv 2604.25011; None without arms of ``sft`` and of ``rl``.
    """

    folder: Path = Field(exclude=True)
    layout: Literal["arms", "together"]
    arms: dict[str, tuple[ArmCourse, ...]]
    pairs: dict[str, tuple[PairCourse, ...]]
    causal: dict[str, CausalCourse]
    quality: dict[str, DictionaryQuality]
    claim: Claim | None

    def _in_short(self) -> str:
        arms = ", ".join(f"{name} ({len(found[0].checkpoints)} checkpoints)" for name, found in self.arms.items())
        seeds = max((len(found) for found in self.arms.values()), default=0)
        return f"{str(self.folder)!r}: {arms}; {seeds} seed{'s' * (seeds != 1)}, {self.layout}"

    def table(self, arm: str, seed: int | None = None) -> "pd.DataFrame":
        """One row per feature of an arm's dictionary (of the first seed if None).

        Columns: ``feature``, ``alive``, ``kind``, ``onset`` (model name), ``half_rise``, ``half_life``, ``persistence``,
        ``peak``; per model ``norm_`` and ``share_``; per checkpoint ``nrn_`` and ``confirmed_``. If RelIE was measured, also
        ``ie_``, ``relie_``, ``low_relie_`` and ``high_relie_`` (95 % bootstrap interval over prompts) of every model, and
        ``n_relie``, the number of prompts in which the feature has an effect. An interval needs 2 prompts, and is rough for
        a few.

        Raises:
            ArtifactError: There is no such arm or seed.
        """
        seeds = [course.seed for course in self.arms.get(arm, ())]
        chosen = seeds[0] if seed is None and seeds else seed
        if chosen not in seeds:
            raise ArtifactError(
                f"{self.folder} has no table of arm '{arm}' and seed {seed}; the arms are {', '.join(self.arms)}."
            )
        return read_frame(self.folder / table_file(arm, int(chosen)), "The feature table")

    def over_seeds(self, arm: str) -> dict[str, SeedSpread]:
        """Overlaps of an arm over the seeds, by name.

        ``overlap`` and ``jaccard``; with pairwise dictionaries also ``pairs_overlap``, ``pairs_found_share``,
        ``ceiling_overlap`` and ``ceiling_found_share``.
        """
        courses, pairs = self.arms[arm], self.pairs.get(arm, ())
        found = {name: over_seeds([getattr(course, name) for course in courses]) for name in ("overlap", "jaccard")}
        if pairs:
            for name in ("overlap", "found_share"):
                found[f"pairs_{name}"] = over_seeds([getattr(course, name) for course in pairs])
                found[f"ceiling_{name}"] = over_seeds([[getattr(course.ceiling, name)] for course in pairs])
        return found

    @property
    def interval_notes(self) -> list[str]:
        """Sentences on the unit of each kind of interval, and on numbers without one."""
        notes = ["Intervals of curves: 95 % bootstrap over the features of one dictionary."]
        notes += [course.interval_note for course in list(self.causal.values())[:1]]  # all arms read the same samples
        seeds = max((len(courses) for courses in self.arms.values()), default=1)
        if seeds == 1:
            return [*notes, "Overlaps of the sets of highest NRN: one seed: no interval (--seeds N)."]
        notes.append(
            f"Overlaps of the sets of highest NRN: mean [smallest, largest] of {seeds} seeds of the dictionary."
        )
        if any(len(repeats) == 1 for repeats in self.pairs.values()):
            notes.append("Overlaps of pairwise dictionaries: one seed: no interval.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The content of ``emergence.json``, with ``over_seeds`` and ``interval_notes``, which follow from the rest."""
        spreads = {arm: {name: spread.to_dict() for name, spread in self.over_seeds(arm).items()} for arm in self.arms}
        return {**super().to_dict(), "over_seeds": spreads, "interval_notes": self.interval_notes}

    @classmethod
    def load(cls, path: Path | str) -> "Emergence":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "emergence")
        data = read_json(folder / RESULT_FILE)
        stored = {key: value for key, value in data.items() if key not in ("over_seeds", "interval_notes")}
        return cls.checked({**stored, "folder": folder}, folder / RESULT_FILE)


def table_file(arm: str, seed: int) -> str:
    """File of the features of one arm in the dictionary of one seed."""
    return f"features_{arm}_seed{seed}.parquet"
