"""The result of ``mechprobe probe``: the typed content of ``probe.json``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mechprobe.drift.probe.behaviour_result import Behaviour, NormNumbers
from mechprobe.environment import require
from mechprobe.files import read_json
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.stage_folder import require_stage

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE = "probe.json"
CLAIM_NOTE = (
    "One training run of each kind says nothing about kinds of training: another seed of either could differ as much. Differences "
    "between arms describe these runs."
)


class LinearProbe(Result):
    """One linear probe, see `mechprobe.drift.probe.linear`.

    Attributes:
        target: ``skill`` or ``domain``.
        accuracy: Balanced accuracy on held-out items, with its interval over held-out families or items (``n``).
        control: The same with shuffled labels.
        selectivity: ``accuracy`` minus ``control``.
        chance: One over the number of classes.
        held_out: What was held out.
        n_items: Items.
    """

    model: str
    site: str
    position: Literal["last", "mean"]
    target: Literal["skill", "domain"]
    accuracy: IntervalNumbers
    control: IntervalNumbers
    selectivity: Number
    chance: Number
    held_out: str
    n_items: int


class FeatureUse(Result):
    """The use of features by one model on the prompts of one skill, see `mechprobe.drift.probe.usage`.

    Attributes:
        density: Mean over features of the share of tokens on which they are active.
        n_features: Features that are active on some token.
        drift: Total variation distance from base's distribution of use, on the same prompts.
        across: The same between different halves of the prompts.
        split_half: That of base from itself between different halves, the null of ``across``.
    """

    model: str
    skill: str
    density: Number
    n_features: int
    drift: NormNumbers
    across: Number
    split_half: Number


class Correlation(Result):
    """Rank correlation of drift (L1) with one number of the checkpoints, see `mechprobe.drift.probe.correlation`.

    Attributes:
        number: Name of the other number.
        arm: Name of the arm; ``pooled`` for all arms, with checkpoints permuted within their arm.
        detrended: Whether the rank of the step was removed from the ranks of both.
        rho: Spearman's correlation; NaN where a side does not vary, such as a number that rises at every step, given the step.
        p: Permutation p-value; NaN where nothing is claimed.
        p_holm: ``p`` adjusted by Holm's method over the numbers.
        n: Checkpoints.
        exact: Whether all permutations were counted.
    """

    number: str
    arm: str
    detrended: bool
    rho: Number
    p: Number
    p_holm: Number
    n: int
    exact: bool


class ProbeResult(Result):
    """The result of `mechprobe.drift.probe`.

    Attributes:
        base: Model before post-training.
        models: Base and all others.
        n_items: Number of items.
        labelled: Whether every item has labels; otherwise task names stand for skills.
        behaviour: Score of the items → profiles, drift and transfer. ``right`` is the verdict of the scorer (the boxed answer of
            skill items). Where items ask for a behaviour beside the answer, ``behaviour`` counts it and ``strict`` needs both.
        linear: Linear probes by model, site and target.
        use: Use of features by model and skill; empty without a dictionary.
        numbers: Name → model → number of divergence or weights with which drift is correlated.
        correlations: Correlations of the drift of ``right``.
        notes: What was left out, and which command makes it.
    """

    folder: Path = Field(exclude=True)
    base: str
    models: tuple[str, ...]
    n_items: int
    labelled: bool
    behaviour: dict[str, Behaviour]
    linear: tuple[LinearProbe, ...]
    use: tuple[FeatureUse, ...]
    numbers: dict[str, dict[str, Number]]
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]

    def _in_short(self) -> str:
        return f"{len(self.models)} models, {self.n_items} items, {self.folder}"

    def to_pandas(self, score: str = "right") -> "pd.DataFrame":
        """One row per model and skill: score, gain and interval ends, chance-corrected."""
        found, rows = self.behaviour[score], []
        for model, profile in found.profiles.items():
            for skill, value in profile.items():
                gain = found.gains[model][skill].corrected if model in found.gains else (float("nan"),) * 3
                rows.append({
                    "model": model, "skill": skill, "raw": value.raw.value, "score": value.corrected.value,
                    "score_low": value.corrected.low, "score_high": value.corrected.high, "gain": gain[0],
                    "gain_low": gain[1], "gain_high": gain[2], "n": value.raw.n,
                })  # fmt: skip
        return require("pandas", "The table of profiles").DataFrame(rows)

    @classmethod
    def load(cls, path: Path | str) -> "ProbeResult":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "probe")
        data: dict[str, Any] = read_json(folder / RESULT_FILE)
        return cls.checked({**data, "folder": folder}, folder / RESULT_FILE)
