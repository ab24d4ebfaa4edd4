"""The course of a feature over checkpoints, from the dictionaries of ``mechprobe emergence``.

These dictionaries are others than the run's, so a feature is matched: two features are the same if the decoders that they
have in base are each other's nearest by cosine, and the cosine is at least ``emergence.min_cosine``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.emergence.result import RESULT_FILE, table_file
from mechprobe.files import read_frame, read_json
from mechprobe.report.explorer.weights import Decoders
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
            "cosine": _rounded(self.cosine[place]),
            "norms": [_rounded(value) for value in self.norms[place]],
            "cosines": [_rounded(value) for value in self.cosines[place]],
        }


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


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
    own, found = Decoders(layout.crosscoder), {}
    if base not in own.models:
        return
    own_base = own.of(base, features)
    for arm, seeds in result["arms"].items():
        course = seeds[0]
        name = "together" if result["layout"] == "together" else arm
        folder = layout.checkpoints / f"{name}_seed{course['seed']}"
        if not (folder / MANIFEST).is_file():
            continue
        frame = read_frame(layout.emergence / table_file(arm, course["seed"]), "The explorer")
        alive = frame.loc[frame["alive"], "feature"].to_numpy()
        other, key = Decoders(folder), (folder, alive.tobytes())
        if key not in found:  # arms that were trained together can have the same features
            theirs = other.of(base, alive)
            same_width = theirs.shape[1] == own_base.shape[1]
            found[key] = mutual_matches(own_base, theirs, settings["min_cosine"]) if same_width else None
        if found[key] is None:
            continue
        mine, theirs, cosine = found[key]
        models, matched = (base, *course["checkpoints"]), alive[theirs]
        in_base = other.of(base, matched)
        yield Course(
            arm=arm,
            models=models,
            progress=tuple(course["progress"]),
            own=features[mine],
            matched=matched,
            cosine=cosine,
            norms=frame.set_index("feature").loc[matched, [f"norm_{model}" for model in models]].to_numpy(),
            cosines=np.stack([np.einsum("fd,fd->f", other.of(model, matched), in_base) for model in models], axis=1),
        )


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
