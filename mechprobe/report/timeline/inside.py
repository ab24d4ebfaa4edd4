"""Quantities inside the models: divergence of `mechprobe drift`, weights of `mechprobe weights`, features of `mechprobe emergence`."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.drift.divergence.columns import COLUMNS
from mechprobe.drift.divergence.metrics import metrics_of
from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.emergence.result import ArmCourse, Emergence
from mechprobe.errors import ArtifactError, DependencyError
from mechprobe.report.timeline.measured import Measured, around, item_weights
from mechprobe.statistics import Interval

DIVERGENCE, WEIGHTS, FEATURES, OVERLAP = "divergence", "weights", "features", "feature overlap"
_SOURCES = ("base", "gold", "prompt", "own")
_NAMES = {"base": "text of base", "gold": "reference responses", "prompt": "prompts", "own": "own text"}
REACHED = "change of decoder norms reached"
_ZERO = Interval(0.0, 0.0, 0.0, 0)


def of_drift(found: DivergenceResult) -> list[Measured]:
    """KL from base on the first of `_SOURCES` that every model has, so that all of them read the same tokens if possible."""
    rows = found.find(metric="kl")
    models = {source: {row.model for row in rows if row.source == source} for source in _SOURCES}
    most = max(map(len, models.values()), default=0)
    if not most:
        return []
    source = next(source for source in _SOURCES if len(models[source]) == most)
    points = {found.base: _ZERO} | {
        model: found.interval(model, "kl", source=source) for model in found.models if model in models[source]
    }
    name = f"KL from base ({_NAMES[source]})"
    try:
        draws, n = _kl_draws(found, source, [model for model in points if model != found.base])
    except (ArtifactError, DependencyError) as error:  # no sums beside the table, or no pandas to read them
        return [Measured(name, DIVERGENCE, points, unit="nats", headline=True, unranked=str(error))]
    why = "" if draws else "models have fewer than two prompts in common"
    return [Measured(name, DIVERGENCE, points, draws, n, "prompts", "nats", headline=True, unranked=why)]


def _kl_draws(
    found: DivergenceResult, source: str, models: list[str]
) -> tuple[dict[str, Float[ndarray, " draw"]], int]:
    """KL of every model in each draw of the prompts that all have, at the lowest temperature; base is 0."""
    frame: Any = found.sums()
    frame = frame[(frame["source"] == source) & frame["model"].isin(models)]
    known = frame["temperature"].dropna()
    if source in ("base", "own") and len(known):
        frame = frame[frame["temperature"] == known.min()]
    sums: dict[str, Any] = {
        str(model): part.groupby("prompt_id")[list(COLUMNS)].sum() for model, part in frame.groupby("model")
    }
    shared = sorted(set.intersection(*(set(part.index) for part in sums.values()))) if len(sums) == len(models) else []
    if len(shared) < 2:
        return {}, len(shared)
    weights = item_weights(f"prompts {source}", len(shared))
    draws = {model: metrics_of(weights @ sums[model].loc[shared].to_numpy())["kl"] for model in models}
    return {found.base: np.zeros(len(weights)), **draws}, len(shared)


def of_weights(found: WeightsResult) -> list[Measured]:
    """Norm of the update of all weights over that of base's weights, which has no sampling error."""
    norms = {name: found.models[name].total.relative_norm for name in found.names}
    points = {found.base: _ZERO} | {name: Interval(norm, norm, norm, 0) for name, norm in norms.items()}
    return [Measured("‖ΔW‖ / ‖W‖", WEIGHTS, points, unit="percent", headline=True)]


def of_emergence(found: Emergence) -> list[Measured]:
    """Of every arm, in the dictionary of the first seed: change of norms, features whose change has begun, and kept top sets."""
    return [part for courses in found.arms.values() for part in _of_arm(found, courses[0])]


def _of_arm(found: Emergence, course: ArmCourse) -> list[Measured]:
    names = (course.base, *course.checkpoints)
    kept = dict(zip(course.checkpoints[1:], course.curves["adjacent_overlap"], strict=False))
    why = "base has no set of highest NRN"
    overlap = Measured(
        f"top {course.top} kept from the checkpoint before", OVERLAP, kept, {}, course.n_alive, "features", "percent", True, why,
        course.name,
    )  # fmt: skip
    try:
        frame: Any = found.table(course.name)
    except DependencyError as error:
        points = dict(zip(names, course.curves["reached_norm"], strict=True))
        return [
            Measured(
                REACHED, FEATURES, points, {}, course.n_alive, "features", "percent", True, str(error), course.name
            ),
            overlap,
        ]
    frame = frame[frame["alive"].to_numpy(dtype=bool)]
    norms = frame[[f"norm_{name}" for name in names]].to_numpy(dtype=np.float64)
    weights = item_weights("features", len(frame))
    parts = [_reached(course, names, norms, weights), _begun(course, names, frame["onset"].tolist(), weights)]
    return [*(part for part in parts if part is not None), overlap]


def _reached(
    course: ArmCourse,
    names: tuple[str, ...],
    norms: Float[ndarray, "feature column"],
    weights: Float[ndarray, "draw feature"],
) -> Measured | None:
    """`reached_norm` of `mechprobe.emergence.curves` with its draws over features; None where no norm changes or few features live."""
    change = norms - norms[:, :1]
    products = change * change[:, -1:]
    total = products.sum(axis=0)
    if len(norms) < 2 or not total[-1] > 0:
        return None
    drawn = weights @ products
    draws = dict(zip(names, (drawn / drawn[:, -1:]).T, strict=True))
    points = dict(zip(names, course.curves["reached_norm"], strict=True))
    return Measured(REACHED, FEATURES, points, draws, len(norms), "features", "percent", headline=True, arm=course.name)


def _begun(
    course: ArmCourse, names: tuple[str, ...], onsets: list[str | None], weights: Float[ndarray, "draw feature"]
) -> Measured | None:
    """Share of the features whose norm changes for which the change has begun; None with fewer than two of them."""
    changed = np.array([onset in names for onset in onsets])
    if changed.sum() < 2:
        return None
    place = np.array([names.index(onset) if onset in names else len(names) for onset in onsets])
    begun = (place[:, None] <= np.arange(len(names))) & changed[:, None]
    counts = weights @ changed.astype(np.float64)
    drawn = (weights @ begun.astype(np.float64))[counts > 0] / counts[counts > 0][:, None]
    n = int(changed.sum())
    draws = dict(zip(names, drawn.T, strict=True))
    points = {m: around(float(begun[:, column].sum() / n), draws[m], n) for column, m in enumerate(names)}
    return Measured(
        "features whose change has begun", FEATURES, points, draws, n, "changed features", "percent", arm=course.name
    )
