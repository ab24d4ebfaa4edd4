"""Numbers of tokens for the axis of the timeline, from the folders of the models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.emergence.arms import Arm, recorded_tokens, with_checkpoints
from mechprobe.errors import ConfigError


def model_folders(run: Mapping[str, Any]) -> dict[str, str]:
    """Folder of every model that ``run.json`` names, and of those in the folders of checkpoints that its sections name."""
    paths = {name: path for name, path in run.get("models", {}).items() if isinstance(path, str)}
    for section in run.values():
        place = section.get("checkpoints") if isinstance(section, dict) else None
        if isinstance(place, str):
            try:
                paths = with_checkpoints(paths, place)
            except ConfigError:  # the folder is no longer there
                continue
    return paths


def read_tokens(arms: Sequence[Arm], paths: Mapping[str, str], base: str) -> tuple[dict[str, int], str]:
    """Model → tokens that its training had read, 0 for base; and why they are no axis, empty if they are one.

    Args:
        arms: The arms on the axis.
        paths: Folders of the models.
        base: Name of the model before post-training.
    """
    found = {base: 0}
    for model in (model for arm in arms for model in arm.checkpoints):
        place = _place(model, paths)
        tokens = None if place is None else recorded_tokens(place)
        if tokens is not None:
            found[model] = tokens
    for arm in arms:
        unknown = [model for model in arm.checkpoints if model not in found]
        if unknown:
            return found, f"no number of tokens is recorded for {unknown[0]}; mechprobe posttrain records it"
        tokens = [found[model] for model in arm.checkpoints]
        if sorted(set(tokens)) != tokens:
            return found, f"the numbers of tokens of {arm.name} ({', '.join(map(str, tokens))}) do not rise"
    return found, ""


def _place(model: str, paths: Mapping[str, str]) -> Path | None:
    """Folder of a model; that of a checkpoint may be in the folder of its arm."""
    if model in paths:
        return Path(paths[model])
    arm, _, step = model.rpartition("@")
    return Path(paths[arm]) / step if arm in paths else None
