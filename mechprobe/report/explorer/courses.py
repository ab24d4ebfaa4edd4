"""The course of a feature over checkpoints, from the dictionaries of ``mechprobe emergence``.

These dictionaries are others than the run's, so a feature is matched: two features are the same if the decoders that they
have in base are each other's nearest by cosine, and the cosine is at least ``emergence.min_cosine``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from mechprobe.emergence.result import RESULT_FILE, table_file
from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json
from mechprobe.report.run_files import RunFiles
from mechprobe.stage_folder import MANIFEST, read_manifest

_CHUNK = 2048
"""Features that are compared with all others at a time."""


@dataclass(frozen=True)
class Course:
    """The features of one arm's dictionary that are matched with features of the run.

    Attributes:
        arm: Name of the arm.
        models: Base and the checkpoints, and ``progress`` through training at each.
        own, matched: Features of the run, by rising id, and of the arm's dictionary.
        cosine: Cosine of their decoders in base.
        norms: Decoder norm (L1, in the models' own units) of the matched feature in each model.
        cosines: Cosine of its decoder in each model with that in base.
    """

    arm: str
    models: tuple[str, ...]
    progress: tuple[float, ...]
    own: Int[ndarray, " match"]
    matched: Int[ndarray, " match"]
    cosine: Float[ndarray, " match"]
    norms: Float[ndarray, "match model"]
    cosines: Float[ndarray, "match model"]

    def of(self, feature: int) -> dict[str, Any] | None:
        """What the page of a feature shows; None without a match."""
        place = int(np.searchsorted(self.own, feature))
        if place == len(self.own) or self.own[place] != feature:
            return None
        return {
            "arm": self.arm,
            "models": list(self.models),
            "progress": list(self.progress),
            "matched": int(self.matched[place]),
            "cosine": round(float(self.cosine[place]), 4),
            "norms": [round(float(value), 4) for value in self.norms[place]],
            "cosines": [round(float(value), 4) for value in self.cosines[place]],
        }


def feature_courses(files: RunFiles, features: Int[ndarray, " live"]) -> list[Course]:
    """The courses of every arm, in the dictionary of the first seed; empty without ``emergence`` at the run's site.

    Raises:
        ArtifactError: A file of a finished stage cannot be read.
    """
    layout = files.layout
    if not all((folder / MANIFEST).is_file() for folder in (layout.emergence, layout.crosscoder)):
        return []
    settings = read_manifest(layout.emergence)["config"]
    if settings.get("site") != read_manifest(layout.crosscoder)["config"].get("site"):
        return []
    return list(_courses(files, features, settings))


def _courses(files: RunFiles, features: Int[ndarray, " live"], settings: dict[str, Any]) -> Iterator[Course]:
    layout, base = files.layout, settings["base"]
    result = read_json(layout.emergence / RESULT_FILE)
    own = Decoders(layout.crosscoder)
    if base not in own.models:
        return
    for arm, seeds in result["arms"].items():
        course = seeds[0]
        name = "together" if result["layout"] == "together" else arm
        folder = layout.checkpoints / f"{name}_seed{course['seed']}"
        if not (folder / MANIFEST).is_file():
            continue
        other = Decoders(folder)
        frame = require("pandas", "The explorer").read_parquet(layout.emergence / table_file(arm, course["seed"]))
        alive = frame.loc[frame["alive"], "feature"].to_numpy()
        directions = other.of(base)[alive]
        if directions.shape[1] != own.of(base).shape[1]:
            continue
        mine, theirs, cosine = mutual_matches(own.of(base)[features], directions, settings["min_cosine"])
        models, matched = (base, *course["checkpoints"]), alive[theirs]
        cosines = [np.sum(other.of(model)[matched] * directions[theirs], axis=1) for model in models]
        yield Course(
            arm=arm,
            models=models,
            progress=tuple(course["progress"]),
            own=features[mine],
            matched=matched,
            cosine=cosine,
            norms=frame.set_index("feature").loc[matched, [f"norm_{model}" for model in models]].to_numpy(),
            cosines=np.stack(cosines, axis=1),
        )


class Decoders:
    """The decoders of a trained crosscoder, one model at a time."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")["config"]
        self.path = folder / "weights.safetensors"
        self.models: Sequence[str] = config["model_names"]
        width = config["d_model"]
        self.widths = [width] * len(self.models) if isinstance(width, int) else list(width)

    def of(self, model: str) -> Float[ndarray, "d_sae d_model"]:
        """The decoder of a model, each feature at length 1 (0 where it has none).

        Raises:
            ArtifactError: The weights cannot be read.
        """
        place = self.models.index(model)
        start = sum(self.widths[:place])
        try:
            with safe_open(str(self.path), framework="numpy") as file:
                decoder = file.get_slice("W_dec")[:, start : start + self.widths[place]].astype(np.float32)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{self.path} cannot be read ({error}); train the dictionary again.") from None
        length = np.linalg.norm(decoder, axis=1, keepdims=True)
        return np.divide(decoder, length, out=np.zeros_like(decoder), where=length > 0)


def mutual_matches(
    first: Float[ndarray, "a d_model"], second: Float[ndarray, "b d_model"], min_cosine: float
) -> tuple[Int[ndarray, " match"], Int[ndarray, " match"], Float[ndarray, " match"]]:
    """Pairs of unit vectors that are each other's nearest, with a cosine of ``min_cosine`` or more, and that cosine.

    Example:
        >>> a, b = np.eye(2), np.array([[0.0, 1.0], [0.6, 0.8]])
        >>> mutual_matches(a, b, 0.7)
        (array([1]), array([0]), array([1.]))
    """
    if not len(first) or not len(second):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    nearest, cosine = np.zeros(len(first), dtype=np.int64), np.zeros(len(first))
    back, highest = np.zeros(len(second), dtype=np.int64), np.full(len(second), -np.inf)
    for start in range(0, len(first), _CHUNK):
        cosines = first[start : start + _CHUNK] @ second.T
        span = slice(start, start + len(cosines))
        nearest[span] = cosines.argmax(axis=1)
        cosine[span] = cosines.max(axis=1)
        better = cosines.max(axis=0) > highest
        back[better] = start + cosines.argmax(axis=0)[better]
        highest[better] = cosines.max(axis=0)[better]
    mine = np.flatnonzero((back[nearest] == np.arange(len(first))) & (cosine >= min_cosine))
    return mine, nearest[mine], cosine[mine]
