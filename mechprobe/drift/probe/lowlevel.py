"""Numbers of divergence and of weights for every model, from the finished stages ``drift`` and ``weights``."""

from pathlib import Path
from typing import TypeVar

from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.errors import ConfigError

_Found = TypeVar("_Found", DivergenceResult, WeightsResult)
Numbers = dict[str, dict[str, float]]
"""Name → model → number."""
SPECTRAL = ("stable_rank", "sv_change", "angle_left")
"""Spectral numbers of the updates with which drift is correlated. Few numbers keep Holm's adjustment small."""


def numbers_of(drift: Path | str | None, weights: Path | str | None, base: str) -> Numbers:
    """The numbers with which the drift of behaviour is correlated; those of a missing stage are left out.

    They are KL(tuned ‖ base) on every source of text at its lowest temperature, the distance of the residuals at the deepest
    layer, the relative norm of the weight update, and `SPECTRAL`.

    Raises:
        ArtifactError: A folder is not the finished stage.
        ConfigError: It compares with another base.
    """
    found: Numbers = {}
    if drift is not None:
        found |= _of_divergence(_same_base(DivergenceResult.load(drift), base))
    if weights is not None:
        found |= _of_weights(_same_base(WeightsResult.load(weights), base))
    return found


def _same_base(result: _Found, base: str) -> _Found:
    if result.base != base:
        raise ConfigError(f"{result.folder} compares with {result.base}, and probe.base is {base}; give them one base.")
    return result


def _of_divergence(result: DivergenceResult) -> Numbers:
    rows = result.find(metric="kl", by="all", group="all")
    found: Numbers = {}
    for row in sorted(
        rows, key=lambda row: row.temperature or 0.0, reverse=True
    ):  # the lowest temperature is written last
        found.setdefault(f"KL on {row.source} text", {})[row.model] = row.value
    deepest = max((row.layer for row in result.layers), default=0)
    distances = {row.model: row.value for row in result.layers if row.metric == "distance" and row.layer == deepest}
    return dict(sorted(found.items())) | ({"distance of residuals": distances} if distances else {})


def _of_weights(result: WeightsResult) -> Numbers:
    updates = {name: update.total for name, update in result.models.items()}
    found: Numbers = {"relative norm of the update": {name: total.relative_norm for name, total in updates.items()}}
    for number in SPECTRAL:
        values = {name: total.spectral[number].value for name, total in updates.items() if number in total.spectral}
        if values:
            found[number] = values
    return found
