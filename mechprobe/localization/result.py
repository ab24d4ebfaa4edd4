"""Typed records of what the ``localize`` stage writes to ``ceilings.json``."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mechprobe.display import columns_of
from mechprobe.environment import require
from mechprobe.interventions.result import StageResult
from mechprobe.results import IntervalNumbers, Number, Result

if TYPE_CHECKING:
    import pandas as pd

CEILINGS_FILE = "ceilings.json"

Accuracy = dict[str, IntervalNumbers]
"""Task → accuracy with its Wilson interval."""


class SiteResult(Result):
    """Accuracies under whole-residual patching at one site.

    Attributes:
        sufficiency: Task → accuracy of the base model with the tuned model's residual.
        necessity: Task → accuracy of the tuned model with the base model's residual.
        sufficiency_share: Share of the gain over the untrained tasks that the first patch gives.
        necessity_share: Share of that gain that the second patch takes. Both are NaN where the gain is not clear of noise.
        sufficiency_cut, necessity_cut: Task → share of responses that were cut at the limit or are unfinished.
    """

    sufficiency: Accuracy
    necessity: Accuracy
    sufficiency_share: Number
    necessity_share: Number
    sufficiency_cut: dict[str, float] = Field(default_factory=dict)
    necessity_cut: dict[str, float] = Field(default_factory=dict)

    @property
    def shares(self) -> tuple[float, float]:
        """``(sufficiency_share, necessity_share)``."""
        return self.sufficiency_share, self.necessity_share


class SiteCeilings(StageResult):
    """Ceilings of every site, and the site chosen from them.

    Attributes:
        tasks: Task names.
        n: Samples per task.
        pair: Base and tuned model.
        clean: Model → task → accuracy without a patch.
        clean_cut: Model → task → share of responses that were cut at the limit or are unfinished, without a patch.
        sites: Site → accuracies with a patch there.
        chosen: The site that `mechprobe.localization.ceilings.choose_site` takes.
        able: Whether both shares of the chosen site reach ``min_share``.
        reason: The choice in one sentence.
    """

    FILE: ClassVar[str] = CEILINGS_FILE

    tasks: list[str]
    n: dict[str, int]
    pair: tuple[str, str]
    clean: dict[str, Accuracy]
    sites: dict[str, SiteResult]
    chosen: str
    able: bool
    reason: str
    clean_cut: dict[str, dict[str, float]] = Field(default_factory=dict)

    def _in_short(self) -> str:
        return f"{self.pair[0]} and {self.pair[1]} at {len(self.sites)} sites; {self.reason}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per site and task: the accuracies under both patches with their intervals."""
        rows = [
            {"site": site, "task": task, "n": self.n[task]}
            | columns_of("sufficiency", found.sufficiency[task])
            | columns_of("necessity", found.necessity[task])
            for site, found in self.sites.items()
            for task in self.tasks
        ]
        return require("pandas", "The table of ceilings").DataFrame(rows)
