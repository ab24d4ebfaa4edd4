"""Which checkpoints belong to which arm, in which order, and how far training was at each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError

_CHECKPOINT = re.compile(r"(?P<arm>.+)@step_(?P<step>\d+)")
_STEP_FOLDER = re.compile(r"step_\d+")


@dataclass(frozen=True)
class Arm:
    """One training run that began at base.

    Attributes:
        name: Of the arm, for example ``rl``.
        checkpoints: Model names in order of training.
        progress: Share of training done at base (0) and at each checkpoint, up to 1.
        spaced_by: ``steps`` where every step is known, else ``checkpoints``: evenly spaced.
    """

    name: str
    checkpoints: tuple[str, ...]
    progress: tuple[float, ...]
    spaced_by: str

    def label(self, checkpoint: str) -> str:
        """A short name for an axis: the step where the name has one, ``end`` for the last model, else the name."""
        match = _CHECKPOINT.fullmatch(checkpoint)
        if match:
            return str(int(match["step"]))
        return "end" if checkpoint == self.checkpoints[-1] else checkpoint


def find_arms(names: Sequence[str], config: EmergenceConfig) -> list[Arm]:
    """The arms of a family.

    Raises:
        ConfigError: There is no arm with two checkpoints, a named model is missing, or steps do not rise.

    Example:
        >>> find_arms(["base", "rl@step_000002", "rl"], EmergenceConfig(final_steps={"rl": 8}))[0].progress
        (0.0, 0.25, 1.0)
    """
    if config.base not in names:
        raise ConfigError(
            f"emergence.base is '{config.base}', but the models are {', '.join(names)}; name one of them."
        )
    grouped = config.arms or _grouped(names)
    arms = []
    for name, checkpoints in grouped.items():
        missing = [model for model in checkpoints if model not in names]
        if missing:
            raise ConfigError(f"Arm {name} names '{missing[0]}', but the models are {', '.join(names)}.")
        if len({config.base, *checkpoints}) <= len(checkpoints):
            raise ConfigError(f"Arm {name} names a model twice, or the base; give each checkpoint once, without base.")
        if len(checkpoints) < 2:
            raise ConfigError(f"Arm {name} has {len(checkpoints)} checkpoint; a course needs two or more.")
        progress, spaced_by = _progress(name, checkpoints, config)
        arms.append(Arm(name, tuple(checkpoints), progress, spaced_by))
    if not arms:
        raise ConfigError(
            "No checkpoint is among the models; give --checkpoints FOLDER, or name models like rl@step_000040."
        )
    return arms


def _grouped(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Checkpoints by the part of the name before ``@``, by step; the model named like the arm comes last."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = _CHECKPOINT.fullmatch(name)
        if match:
            found.setdefault(match["arm"], []).append((int(match["step"]), name))
    return {
        arm: tuple(name for _, name in sorted(items)) + ((arm,) if arm in names else ()) for arm, items in found.items()
    }


def _progress(arm: str, checkpoints: Sequence[str], config: EmergenceConfig) -> tuple[tuple[float, ...], str]:
    steps: list[int | None] = []
    for name in checkpoints:
        match = _CHECKPOINT.fullmatch(name)
        steps.append(int(match["step"]) if match else config.final_steps.get(name))
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        n = len(checkpoints)
        return tuple(index / n for index in range(n + 1)), "checkpoints"
    if sorted(set(known)) != known or known[0] <= 0:
        raise ConfigError(
            f"The steps of arm {arm} ({', '.join(map(str, known))}) do not rise from above 0; order them."
        )
    return (0.0, *(step / known[-1] for step in known)), "steps"


def checkpoint_folders(folder: Path | str) -> dict[str, str]:
    """Models below a folder of checkpoints, ``<arm>/step_<n>/``, as ``arm@step_<n>`` to path.

    Raises:
        ConfigError: The folder is missing or holds no such model.
    """
    folder = Path(folder)
    found = {
        f"{path.parent.name}@{path.name}": str(path)
        for path in sorted(folder.glob("*/step_*"))
        if path.is_dir() and _STEP_FOLDER.fullmatch(path.name)
    }
    if not found:
        raise ConfigError(f"{folder} holds no checkpoint; its models lie in <arm>/step_<n>/.")
    return found


def with_checkpoints(models: Mapping[str, str], folder: Path | str) -> dict[str, str]:
    """``models`` and those below a folder of checkpoints; a name given already keeps its path."""
    return {**checkpoint_folders(folder), **models} if folder else dict(models)
