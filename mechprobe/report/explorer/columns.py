"""The numbers of every live feature that the explorer shows: the columns of its table, and those of a feature's page."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.errors import ArtifactError
from mechprobe.files import read_frame
from mechprobe.report.run_files import RunFiles
from mechprobe.selection.agnostic import relative_values
from mechprobe.selection.result import SCORES_FILE
from mechprobe.selection.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

RANKING_NAMES = {"joint": "J", "score": "Score", "ig": "IG", "relie": "RelIE"}
_OF_FEATURE = (
    "density_",
    "mean_active_",
    "max_",
    "mas_",
    "nrn_",
    "norm_l1_",
    "shift_",
    "cosine_",
    "nu_",
    "correlation_",
)
"""Columns of the feature table on the page of a feature."""


@dataclass(frozen=True)
class FeatureColumns:
    """The live features in order of their ids.

    Attributes:
        frame: Their rows of the feature table.
        columns: Key, title and explanation of the numeric columns of the explorer's table, in order.
        values: Values of these columns, by key.
        details: Values on a feature's page, by column of the feature table, or ``<ranking>.<task>``.
    """

    frame: "pd.DataFrame"
    columns: list[dict[str, str]]
    values: dict[str, Float[ndarray, " live"]]
    details: dict[str, Float[ndarray, " live"]]

    @property
    def features(self) -> ndarray:
        """Feature ids."""
        return self.frame["feature"].to_numpy()


def feature_columns(files: RunFiles) -> FeatureColumns:
    """Read the feature table, and the scores where features were selected.

    Raises:
        ArtifactError: A file cannot be read.
    """
    path = files.layout.features / "table.parquet"
    try:
        frame = read_frame(path, "The explorer")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make it again with --force.") from None
    frame = frame.loc[~frame["dead"]].reset_index(drop=True)
    details = {name: _numbers(frame[name]) for name in frame if str(name).startswith(_OF_FEATURE)}
    first, last = _table_columns((files.features or {})["models"], files.base)
    scores, ranked, values = _scores(files), [], {}
    ids = frame["feature"].to_numpy()
    for name in scores.rankings if scores else ():
        of_tasks = scores.values(name)  # pyright: ignore[reportOptionalMemberAccess]
        details |= {f"{name}.{task}": of_tasks[row][ids] for row, task in enumerate(scores.tasks)}  # pyright: ignore[reportOptionalMemberAccess]
        if name in ("joint", (files.selection or {}).get("ranking")):
            title = RANKING_NAMES[name]
            values[name] = relative_values(of_tasks).min(axis=0)[ids]
            ranked.append((name, title, f"Smallest over the tasks of {title} as a share of the task's largest value"))
    values |= {key: details[key] for key, _, _ in (*first, *last)}
    found = (*first, *ranked, *last)
    return FeatureColumns(
        frame, [{"key": key, "title": title, "help": text} for key, title, text in found], values, details
    )


def _table_columns(models: list[str], base: str) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Key, title and explanation of the columns before those of the rankings, and after them."""
    tuned = [name for name in models if name != base]
    first = [
        (f"nrn_{name}", f"NRN {name}", f"Decoder norm in {name} over the sum of those in {base} and {name}")
        for name in tuned
    ]
    first.append(("density_joint", "density", "Share of tokens on which the feature is active (joint read-out)"))
    last = [
        (f"nu_{kind}_{name}", f"ν {kind[:3]}. {name}", f"Latent scaling on the {kind}: {base} over {name}")
        for kind in ("error", "reconstruction")
        for name in tuned
    ]
    last += [(f"mas_{name}", f"MAS {name}", f"Share of {name} in the sum of decoder norms") for name in models]
    return first, last


def _numbers(column: Any) -> Float[ndarray, " live"]:
    return column.to_numpy(dtype=np.float64)


def _scores(files: RunFiles) -> Scores | None:
    path = files.layout.selection / SCORES_FILE
    return Scores.load(path) if files.selection and path.is_file() else None
