"""Arms of training: which checkpoints belong to each, in which order, and how much of training is done at each."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError
from mechprobe.stage_folder import MANIFEST

_CHECKPOINT = re.compile(r"(?P<arm>.+)@step_(?P<step>\d+)")
_STEP_FOLDER = re.compile(r"step_(?P<step>\d+)")

Spacing = Literal["steps", "checkpoints"]


@dataclass(frozen=True)
class Arm:
    """One training run that starts from base.

    Attributes:
        checkpoints: Model names in order of training.
        progress: Share of training done at base (0) and at each checkpoint, up to 1.
        spaced_by: ``steps`` if every step is known; ``checkpoints`` if they count as evenly spaced.
        steps: Optimizer step of each checkpoint; empty if one is unknown.
    """

    name: str
    checkpoints: tuple[str, ...]
    progress: tuple[float, ...]
    spaced_by: Spacing
    steps: tuple[int, ...] = ()

    @property
    def dated(self) -> tuple[float, ...]:
        """`progress` where every step is known, otherwise NaN: checkpoints that count as evenly spaced date nothing."""
        return self.progress if self.spaced_by == "steps" else (float("nan"),) * len(self.progress)

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
        arms.append(_arm(name, checkpoints, config.final_steps))
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
    others = [name for name in names if name != base]
    found = _grouped(others)
    inside = {name for checkpoints in found.values() for name in checkpoints}
    found |= {name: (name,) for name in others if name not in inside}
    arms = [_arm(name, checkpoints, final_steps) for name, checkpoints in found.items()]
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


def _arm(name: str, checkpoints: Sequence[str], final_steps: Mapping[str, int]) -> Arm:
    """An arm with the steps of its checkpoints, from their names or ``final_steps``."""
    steps = [step_of(model, final_steps) for model in checkpoints]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        n = len(checkpoints)
        return Arm(name, tuple(checkpoints), tuple(index / n for index in range(n + 1)), "checkpoints")
    if sorted(set(known)) != known or known[0] <= 0:
        raise ConfigError(
            f"The steps of arm {name} ({', '.join(map(str, known))}) must be positive and rise; order its checkpoints, or set "
            "final_steps."
        )
    return Arm(name, tuple(checkpoints), (0.0, *(step / known[-1] for step in known)), "steps", tuple(known))


def with_recorded(
    final_steps: Mapping[str, int], models: Iterable[tuple[str, Path | str]], base: str
) -> dict[str, int]:
    """``final_steps``, and for further models the steps that their folders record.

    A folder ``step_<n>`` is a checkpoint, and the manifest of an arm (`mechprobe posttrain`, `mechprobe lab`) says how many steps
    were trained. Names with a step, ``base`` and models that are no folders are left out.

    Args:
        final_steps: Model → step, as given; it wins.
        models: Names and folders.
        base: Name of the model before post-training.
    """
    found = {
        name: step
        for name, path in models
        if name != base and not _CHECKPOINT.fullmatch(name) and (step := recorded_step(path)) is not None
    }
    return found | dict(final_steps)


def recorded_step(path: Path | str) -> int | None:
    """The optimizer step of a model's folder, see `with_recorded`; None where it records none."""
    place = Path(path)
    if not place.is_dir():
        return None
    named = _STEP_FOLDER.fullmatch(place.name)
    if named:
        return int(named["step"])
    found = _arm_results(place, ("posttrain", "lab-")).get("steps")
    return found if _positive(found) else None


def recorded_tokens(path: Path | str) -> int | None:
    """Tokens that an arm of `mechprobe posttrain` had read at a model's folder, which is the arm's or a ``step_<n>`` in it.

    They are those of prompts and responses, see `mechprobe.posttrain.result.TokensSeen`. None where no number is recorded.
    """
    place, step = Path(path), recorded_step(path)
    results = _arm_results(place.parent if _STEP_FOLDER.fullmatch(place.name) else place, ("posttrain",))
    rows = results.get("tokens")
    found = (
        [row.get("n") for row in rows if isinstance(row, dict) and row.get("step") == step]
        if isinstance(rows, list | tuple)
        else []
    )
    return found[0] if step is not None and found and _positive(found[0]) else None


def _arm_results(place: Path, stages: tuple[str, ...]) -> dict[str, Any]:
    """Results in the manifest of an arm that one of the stages made; empty without one."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(manifest, dict) or not str(manifest.get("stage", "")).startswith(stages):
        return {}
    results = manifest.get("results")
    return results if isinstance(results, dict) else {}


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
