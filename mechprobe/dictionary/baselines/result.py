"""What the baselines stage writes: ``baselines.json``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import model_serializer

from mechprobe.dictionary.result import DeadFrac
from mechprobe.environment import require
from mechprobe.results import Number, Result

if TYPE_CHECKING:
    import pandas as pd


class Reconstruction(Result):
    """One dictionary on one model's held-out rows.

    Attributes:
        fve: 1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², pooled over rows, about the mean.
        l0: Mean number of active features.
        dead_frac: Share of features that are active on no row.
        n_rows: Held-out rows.
        ce_recovered: Share of next-token cross-entropy recovered; None where it was not measured, and then not in the file.
        n_predictions: Predicted tokens behind it.
    """

    fve: Number
    l0: Number
    dead_frac: DeadFrac
    n_rows: int
    ce_recovered: float | None = None
    n_predictions: int | None = None

    @model_serializer(mode="wrap")
    def _without_unmeasured(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        left_out = ("ce_recovered", "n_predictions") if self.n_predictions is None else ()
        return {name: value for name, value in serialize(self).items() if name not in left_out}


class Baselines(Result):
    """``baselines.json``: the crosscoder, its slice and the SAE of each model on the same held-out rows.

    Attributes:
        models: By model, then by dictionary: ``crosscoder``, ``slice`` (models of one width) and ``sae``.
        d_sae: Features of the crosscoder, and of the SAE of each model.
        sources: By model, the folder of a given SAE, or "trained here".
        training: Configuration of the SAEs' training; None where all were given.
        readout: How the slice reads its model.
        site: The site of the store.
        held_out_rows: Held-out rows.
        ce_note: Why the spliced loss of the SAEs is missing; None where it is not.
    """

    models: dict[str, dict[str, Reconstruction]]
    d_sae: dict[str, int]
    sources: dict[str, str]
    training: dict[str, Any] | None
    readout: str
    site: str
    held_out_rows: int
    ce_note: str | None

    def _in_short(self) -> str:
        found = "; ".join(
            f"{model} FVE " + ", ".join(f"{name} {one.fve:.3f}" for name, one in kinds.items())
            for model, kinds in self.models.items()
        )
        return f"{self.site}, {self.held_out_rows:,} held-out rows; {found}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per model and dictionary."""
        rows = [
            {"model": model, "dictionary": name, **one.to_dict()}
            for model, kinds in self.models.items()
            for name, one in kinds.items()
        ]
        return require("pandas", "The table of baselines").DataFrame(rows)
