"""Arms of training: which checkpoints belong to each, in which order, and how much of training is done at each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError

_CHECKPOINT = re.compile(r"(?P<arm>.+)@step_(?P<step>\d+)")

Spacing = Literal["steps", "checkpoints"]


@dataclass(frozen=True)
class Arm:
    """One training run that starts from base.

    Attributes:
        checkpoints: Model names in order of training.
        progress: Share of training done at base (0) and at each checkpoint, up to 1.
        spaced_by: ``steps`` if every step is known; ``checkpoints`` if they count as evenly spaced.
    """

    name: str
    checkpoints: tuple[str, ...]
    progress: tuple[float, ...]
    spaced_by: Spacing

    def label(self, checkpoint: str) -> str:
        """A short name for an axis: the step if the name has one, ``end`` for the last model, otherwise the name."""
        match = _CHECKPOINT.fullmatch(checkpoint)
        if match:
            return str(int(match["step"]))
        return "end" if checkpoint == self.checkpoints[-1] else checkpoint


def find_arms(names: Sequence[str], config: EmergenceConfig) -> list[Arm]:
    """The arms of a family.

    Raises:
        ConfigError: There is no arm, an arm has fewer than two checkpoints, a named model is missing, or steps do not rise.

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
            raise ConfigError(
                f"Arm {name} names '{missing[0]}', but the models are {', '.join(names)}; name one of them."
            )
        if len({config.base, *checkpoints}) <= len(checkpoints):
            raise ConfigError(
                f"Arm {name} names a model twice, or names base; name each checkpoint once, without base."
            )
        if len(checkpoints) < 2:
            raise ConfigError(
                f"Arm {name} has {len(checkpoints)} checkpoint and needs two or more; give further checkpoints."
            )
        progress, spaced_by = _progress(name, checkpoints, config)
        arms.append(Arm(name, tuple(checkpoints), progress, spaced_by))
    if not arms:
        raise ConfigError(
            "There is no checkpoint among the models; give --checkpoints FOLDER, or name models like rl@step_000040."
        )
    return arms


def step_of(name: str, final_steps: Mapping[str, int]) -> int | None:
    """The training step of a model, from its name or from ``final_steps``; None where neither says it."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match["step"]) if match else final_steps.get(name)


def all_arms(names: Sequence[str], base: str, final_steps: Mapping[str, int]) -> list[Arm]:
    """The arms among some models, in order of appearance; a model that has no checkpoints is an arm of one.

    Args:
        names: Names of the models.
        base: Name of the model before post-training, which is in no arm.
        final_steps: Model → training step, for models without a step in their name.

    Raises:
        ConfigError: Steps do not rise.

    Example:
        >>> [(arm.name, arm.checkpoints) for arm in all_arms(["base", "rl@step_000002", "rl", "sft"], "base", {})]
        [('rl', ('rl@step_000002', 'rl')), ('sft', ('sft',))]
    """
    config, others = EmergenceConfig(base=base, final_steps=dict(final_steps)), [name for name in names if name != base]
    found = _grouped(others)
    inside = {name for checkpoints in found.values() for name in checkpoints}
    found |= {name: (name,) for name in others if name not in inside}
    arms = [Arm(name, checkpoints, *_progress(name, checkpoints, config)) for name, checkpoints in found.items()]
    return sorted(arms, key=lambda arm: min(others.index(name) for name in arm.checkpoints))


def arm_of(model: str) -> str:
    """The arm of a model: the part of its name before ``@step_``, or the whole name."""
    match = _CHECKPOINT.fullmatch(model)
    return match["arm"] if match else model


def last_of_arms(names: Sequence[str]) -> list[str]:
    """The last model of every arm, the one named like the arm, else its last step; arms of SFT come first.

    Example:
        >>> last_of_arms(["rl@step_2", "rl", "dpo@step_9", "dpo@step_10", "sft"])
        ['sft', 'dpo@step_10', 'rl']
    """
    arms = dict.fromkeys(map(arm_of, names))
    ordered = sorted(arms, key=lambda arm: (not arm.startswith("sft"), arm))
    steps = _grouped(names)
    return [arm if arm in names else steps[arm][-1] for arm in ordered]


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


def _progress(arm: str, checkpoints: Sequence[str], config: EmergenceConfig) -> tuple[tuple[float, ...], Spacing]:
    """Share of training done at base and at each checkpoint, and what it is measured by."""
    matches = [(_CHECKPOINT.fullmatch(name), name) for name in checkpoints]
    steps = [int(match["step"]) if match else config.final_steps.get(name) for match, name in matches]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        n = len(checkpoints)
        return tuple(index / n for index in range(n + 1)), "checkpoints"
    if sorted(set(known)) != known or known[0] <= 0:
        raise ConfigError(
            f"The steps of arm {arm} ({', '.join(map(str, known))}) must be positive and rise; order its checkpoints."
        )
    return (0.0, *(step / known[-1] for step in known)), "steps"


def checkpoint_folders(folder: Path | str) -> dict[str, str]:
    """Models in a folder of checkpoints, ``<arm>/step_<n>/``: name ``arm@step_<n>`` → path.

    Raises:
        ConfigError: The folder is missing or contains no such model.
    """
    folder = Path(folder)
    found = {
        f"{path.parent.name}@{path.name}": str(path)
        for path in sorted(folder.glob("*/step_*"))
        if path.is_dir() and re.fullmatch(r"step_\d+", path.name)
    }
    if not found:
        raise ConfigError(f"{folder} holds no checkpoint; give a folder with models in <arm>/step_<n>/.")
    return found


def with_checkpoints(models: Mapping[str, str], folder: Path | str) -> dict[str, str]:
    """``models`` and the models in a folder of checkpoints, if one is given; names in ``models`` keep their paths."""
    return {**checkpoint_folders(folder), **models} if folder else dict(models)
