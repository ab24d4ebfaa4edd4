"""Typed records of what the ``localize`` stage writes to ``ceilings.json``."""

from pathlib import Path
from typing import Any

from mechprobe.interventions.condition_result import json_value
from mechprobe.results import IntervalNumbers, Number, Result
from mechprobe.stage_folder import read_manifest

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
    """

    sufficiency: Accuracy
    necessity: Accuracy
    sufficiency_share: Number
    necessity_share: Number

    @property
    def shares(self) -> tuple[float, float]:
        """``(sufficiency_share, necessity_share)``."""
        return self.sufficiency_share, self.necessity_share


class SiteCeilings(Result):
    """Ceilings of every site, and the site chosen from them.

    Attributes:
        tasks: Task names.
        n: Samples per task.
        pair: Base and tuned model.
        clean: Model → task → accuracy without a patch.
        sites: Site → accuracies with a patch there.
        chosen: The site that `mechprobe.localization.choice.choose_site` takes.
        able: Whether both shares of the chosen site reach ``min_share``.
        reason: The choice in one sentence.
    """

    tasks: list[str]
    n: dict[str, int]
    pair: tuple[str, str]
    clean: dict[str, Accuracy]
    sites: dict[str, SiteResult]
    chosen: str
    able: bool
    reason: str

    @classmethod
    def load(cls, path: Path | str) -> "SiteCeilings":
        """Read a finished ``localize`` stage.

        Args:
            path: The stage folder.

        Raises:
            ArtifactError: The stage is not finished, or its ``ceilings.json`` does not hold these records.
        """
        read_manifest(path)
        return super().load(Path(path) / CEILINGS_FILE)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value, where NaN is None."""
        return json_value(self)
