"""The selection that the ``select`` stage makes, and the typed records of its files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.display import Displayed
from mechprobe.environment import require
from mechprobe.errors import SelectionError
from mechprobe.results import Number, OrEmpty, Result
from mechprobe.selection.agnostic import AgnosticCounts, agnostic_features
from mechprobe.selection.config import Ranking
from mechprobe.selection.controls import ControlMatch, match_quality, matched_random_sets
from mechprobe.selection.never_active import NeverActive, never_active
from mechprobe.selection.rules import depends_on_tasks, leave_one_task_out, resolve
from mechprobe.selection.scores import Scores
from mechprobe.selection.stability import Stability
from mechprobe.stage_folder import check_outputs, read_manifest
from mechprobe.types import ReadoutMode

if TYPE_CHECKING:
    import pandas as pd

SELECTION_FILE = "selection.json"
SCORES_FILE = "scores.safetensors"
SELECTED_FILE = "selected.parquet"

SHARED = (
    "features", "rule", "ranking", "site", "agnostic", "n_agnostic", "controls", "control_match", "transplant_controls",
    "transplant_match", "stability", "note", "threshold", "crosscoder", "outcomes_from",
)  # fmt: skip
"""Fields that `Selection` and `SelectionSummary` have in common."""


class LeftOut(Result):
    """The features that the specification chooses without one task."""

    features: tuple[int, ...]
    jaccard: Number
    """Jaccard index with the selection; NaN if both are empty."""


class AttributionPath(Result):
    """The metric at both ends of the path of an attribution, on the gained samples of one task."""

    n: int
    """Samples."""
    metric: float
    """Mean log-probability per token of the right answer in the unedited tuned model, in nats."""
    without: float
    """The same with base's features in place of the tuned model's (``ig``), or without features (``relie``)."""
    completeness_gap: Number
    """Share of the difference between the ends that the sum of the attributions misses; NaN if there is no difference."""


class SelectionSummary(Result):
    """The content of ``selection.json``. `Selection` describes the fields that both have."""

    features: tuple[int, ...]
    rule: str
    ranking: Ranking
    site: str
    pair: tuple[str, str]
    """Base and tuned model."""
    tasks: tuple[str, ...]
    """Tasks that selected."""
    n_gained: dict[str, int]
    """Task → samples of G_t that were read."""
    gained_sizes: dict[str, int]
    """Task → all samples of G_t."""
    too_few: dict[str, int]
    """Task → samples of G_t, for tasks with too few samples to select."""
    agnostic: tuple[int, ...]
    n_agnostic: int
    agnostic_sizes: dict[str, AgnosticCounts]
    silent: NeverActive
    scores: dict[str, dict[str, tuple[float, ...]]]
    """Ranking → task → values of the selected features."""
    leave_one_task_out: dict[str, LeftOut]
    stability: OrEmpty[Stability]
    controls: tuple[tuple[int, ...], ...]
    control_match: OrEmpty[ControlMatch]
    transplant_controls: tuple[tuple[int, ...], ...] = ()
    transplant_match: OrEmpty[ControlMatch] = None
    attribution: dict[str, dict[str, AttributionPath]]
    """``ig`` or ``relie`` → task → its path."""
    readout: str
    positions: str
    pooling: str
    threshold: float
    note: str
    crosscoder: str
    outcomes_from: str = ""


@dataclass(frozen=True, repr=False)
class Selection(Displayed):
    """A set of features, the values it was chosen from, and the random sets that match it.

    Attributes:
        features: Indices, best first.
        site: ``resid_post.<layer>``.
        rule: The specification, for example ``top50``.
        ranking: ``joint``, ``score``, ``ig`` or ``relie``.
        agnostic: Live features that are task-agnostic under the ranking, best first.
        n_agnostic: Number of task-agnostic features in ``features``.
        controls: Random sets for edits of one model, matched on density, decoder norm and contribution norm; the i-th
            feature of each matches the i-th of ``features``.
        note: How many features are not task-agnostic, or empty.
        crosscoder: Fingerprint of the dictionary.
        scores: Values of all features.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.
        left_out: Task → features that the same specification chooses from the other tasks. Empty if the specification
            names its features outright, or if only one task selects.
        control_match: How near the random sets come to the selection; None without random sets.
        transplant_controls, transplant_match: The same for transplants, matched on density, decoder norm and J; `under` gives
            those of another read-out.
        stability: How the selection depends on samples and threshold; None unless the ``select`` stage made it.
        outcomes_from: The engine that generated the responses, in a sentence; empty where transformers did so here.
    """

    features: tuple[int, ...]
    site: str
    rule: str
    ranking: Ranking
    agnostic: tuple[int, ...]
    n_agnostic: int
    controls: tuple[tuple[int, ...], ...]
    note: str
    crosscoder: str
    scores: Scores
    threshold: float
    left_out: dict[str, tuple[int, ...]] = field(default_factory=dict)
    control_match: ControlMatch | None = None
    transplant_controls: tuple[tuple[int, ...], ...] = ()
    transplant_match: ControlMatch | None = None
    stability: Stability | None = None
    outcomes_from: str = ""

    def _in_short(self) -> str:
        first = ", ".join(map(str, self.features[:5])) + ", …" * (len(self.features) > 5)
        return (
            f"{len(self.features)} features at {self.site} by {self.rule} ({self.ranking}): {first}; "
            f"{len(self.controls)} random sets"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """One row per selected feature, best first, with its value on every task under the ranking."""
        values = self.scores.values(self.ranking)
        ids = list(self.features)
        columns = {"feature": ids, "agnostic": [feature in self.agnostic for feature in ids]}
        columns |= {task: values[row, ids] for row, task in enumerate(self.scores.tasks)}
        return require("pandas", "The table of features").DataFrame(columns)

    @classmethod
    def load(cls, folder: Path | str) -> "Selection":
        """Read a finished ``select`` stage.

        Raises:
            ArtifactError: The folder is not a finished stage, or its files are damaged.
        """
        folder = Path(folder)
        check_outputs(folder, read_manifest(folder))
        summary = SelectionSummary.load(folder / SELECTION_FILE)
        left_out = summary.leave_one_task_out
        return cls(
            **{name: getattr(summary, name) for name in SHARED},
            scores=Scores.load(folder / SCORES_FILE),
            left_out={task: left_out[task].features for task in summary.tasks if task in left_out},
        )

    @property
    def never_active(self) -> NeverActive:
        """How many of the features never fire on the gained samples."""
        return never_active(self.features, self.scores.fires, self.scores.tasks)

    def choose(
        self,
        rule: str,
        *,
        ranking: Ranking | None = None,
        n_controls: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        table: "pd.DataFrame | None" = None,
    ) -> "Selection":
        """This selection if it was made with the same settings, or another selection from the same scores.

        If rule, ranking and threshold are those of this selection, the result has its features and the first
        ``n_controls`` of its random sets. New random sets are drawn only for another selection, or if more sets are
        asked for than this selection has. Arguments and errors are those of the function `choose`; None uses the
        setting of this selection.
        """
        ranking, threshold = ranking or self.ranking, self.threshold if threshold is None else threshold
        n_controls = len(self.controls) if n_controls is None else n_controls
        same = (rule, ranking, threshold) == (self.rule, self.ranking, self.threshold)
        drawn = min(len(self.controls), len(self.transplant_controls))
        if same and n_controls == drawn == len(self.controls):
            return self
        if same and n_controls < drawn:
            return replace(
                self,
                **_controls_of(
                    self.scores, self.features, self.controls[:n_controls], self.transplant_controls[:n_controls]
                ),
            )
        other = choose(
            self.scores,
            rule,
            site=self.site,
            crosscoder=self.crosscoder,
            ranking=ranking,
            n_controls=n_controls,
            threshold=threshold,
            seed=seed,
            table=table,
        )
        return replace(other, outcomes_from=self.outcomes_from)

    def under(self, readout: ReadoutMode, *, seed: int = 0) -> "Selection":
        """This selection with the random sets of its transplants matched on what a read-out writes.

        Under ``joint`` they are matched on J and stay as they are, and so they do under ``single``, whose writes the ``select`` stage
        does not measure. ``seed`` is the seed of new random sets.

        Raises:
            SelectionError: The selection does not hold what transplants write under ``swap``.
        """
        if readout != "swap" or not self.transplant_controls:
            return self
        covariates = self.scores.swap_covariates
        sets = matched_random_sets(self.features, covariates, n_sets=len(self.transplant_controls), seed=seed)
        match = match_quality(self.features, sets, covariates)
        return replace(self, transplant_controls=tuple(map(tuple, sets)), transplant_match=match)


def choose(  # noqa: PLR0913 - every setting is recorded in the result
    scores: Scores,
    rule: str,
    *,
    site: str,
    crosscoder: str,
    ranking: Ranking = "joint",
    n_controls: int = 20,
    threshold: float = 0.2,
    seed: int = 0,
    table: "pd.DataFrame | None" = None,
) -> Selection:
    """The selection of a rule from scores, with its matched random sets.

    Args:
        scores: Values of every feature.
        rule: The specification, see `mechprobe.selection.rules.resolve`.
        site: ``resid_post.<layer>`` where the crosscoder was trained.
        crosscoder: Fingerprint of the dictionary.
        ranking: Values that rank.
        n_controls: Number of random sets.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.
        seed: Seed of the random sets.
        table: Feature table, for ``rule:`` specifications.

    Raises:
        SelectionError: The rule cannot be read, names no feature, or leaves too few features for the controls; or the
            scores hold no values of the ranking, or values on samples that were not gained.
    """
    if depends_on_tasks(rule) and not any(scores.n_gained):
        raise SelectionError(
            f"'{rule}' ranks features by the gained samples, and there were none when the selection was made; name the features: "
            'mechprobe select --features "ids:1,2,3", or evaluate more samples and select again.'
        )
    values = scores.values(ranking)
    chosen = resolve(rule, values, live=scores.live, threshold=threshold, table=table)
    sets, of_transplants = (
        matched_random_sets(chosen.ids, covariates, n_sets=n_controls, seed=seed)
        for covariates in (scores.covariates, scores.transplant_covariates)
    )
    return Selection(
        features=chosen.ids,
        site=site,
        rule=rule,
        ranking=ranking,
        agnostic=tuple(agnostic_features(values, threshold, live=scores.live).tolist()),
        n_agnostic=chosen.agnostic,
        **_controls_of(scores, chosen.ids, sets, of_transplants),
        note=chosen.note,
        crosscoder=crosscoder,
        scores=scores,
        threshold=threshold,
        left_out=leave_one_task_out(rule, values, scores.tasks, live=scores.live, threshold=threshold),
    )


def _controls_of(
    scores: Scores, ids: Sequence[int], sets: Sequence[Sequence[int]], of_transplants: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The random sets of a selection with their matches."""
    return {
        "controls": tuple(map(tuple, sets)),
        "control_match": match_quality(ids, sets, scores.covariates),
        "transplant_controls": tuple(map(tuple, of_transplants)),
        "transplant_match": match_quality(ids, of_transplants, scores.transplant_covariates),
    }
