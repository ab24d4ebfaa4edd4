"""Curves of a run: the outcomes of base and of the checkpoints of every arm, task by task."""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.detect import dip_and_recovery
from mechprobe.dynamics.lengths import length_course
from mechprobe.dynamics.result import DipResult
from mechprobe.emergence.arms import Arm, find_arms
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError
from mechprobe.progress import progress
from mechprobe.records import Outcome, Outcomes


class ArmSteps(NamedTuple):
    """The models of one arm, base first, and the step of each checkpoint."""

    models: tuple[str, ...]
    steps: tuple[float, ...]
    spaced_by: Literal["steps", "checkpoints"]


def arm_steps(arm: Arm, base: str, arms: EmergenceConfig) -> ArmSteps:
    """Steps from the models' names or ``emergence.final_steps``; 1, 2, 3... where one is unknown."""
    models = (base, *arm.checkpoints)
    if arm.spaced_by == "checkpoints":
        return ArmSteps(models, tuple(float(place + 1) for place in range(len(arm.checkpoints))), "checkpoints")
    known = [arms.final_steps.get(name) for name in arm.checkpoints]
    steps = [
        step if step is not None else int(name.rpartition("_")[2])
        for name, step in zip(arm.checkpoints, known, strict=True)
    ]
    return ArmSteps(models, tuple(map(float, steps)), "steps")


def run_curves(
    outcomes: Outcomes, config: DynamicsConfig, arms: EmergenceConfig
) -> tuple[dict[str, DipResult], dict[str, Literal["steps", "checkpoints"]]]:
    """``arm/task`` → result, each for itself, and how the checkpoints of every arm are spaced.

    Raises:
        ConfigError: There are no checkpoints, or a task has no outcomes.
    """
    tasks = _tasks(outcomes, config)
    courses = {arm.name: arm_steps(arm, arms.base, arms) for arm in _arms(outcomes, arms)}
    found: dict[str, DipResult] = {}
    with progress(len(tasks) * len(courses), "curves", unit="curves") as advance:
        for arm, course in courses.items():
            for task in tasks:
                found[f"{arm}/{task}"] = _curve(outcomes, course, task, config)
                advance(1, curve=f"{arm}/{task}")
    return found, {arm: course.spaced_by for arm, course in courses.items()}


def plan_lines(outcomes: Outcomes, config: DynamicsConfig, arms: EmergenceConfig) -> tuple[list[str], dict[str, int]]:
    """What would be classified, and the number of checkpoints of each curve; raises as `run_curves`."""
    tasks, found = _tasks(outcomes, config), _arms(outcomes, arms)
    curves = {f"{arm.name}/{task}": len(arm.checkpoints) for arm in found for task in tasks}
    return [
        *(f"arm {arm.name}: {arms.base}, {', '.join(arm.checkpoints)} (spaced by {arm.spaced_by})" for arm in found),
        f"{len(curves)} curves of {', '.join(tasks)}, each with {config.draws:,} simulated curves of each kind without a dip",
    ], curves


def _arms(outcomes: Outcomes, arms: EmergenceConfig) -> list[Arm]:
    if not arms.arms and not any("@step_" in name for name in outcomes.models):
        raise ConfigError(
            f"There is no checkpoint among the evaluated models ({', '.join(outcomes.models)}); evaluate models named like "
            "rl@step_000040, or set emergence.arms."
        )
    return find_arms(outcomes.models, arms)


def _tasks(outcomes: Outcomes, config: DynamicsConfig) -> list[str]:
    tasks = outcomes.tasks if config.tasks is None else list(config.tasks)
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(f"dynamics.tasks names '{unknown[0]}', but the tasks are {', '.join(outcomes.tasks)}.")
    return tasks


def _curve(outcomes: Outcomes, course: ArmSteps, task: str, config: DynamicsConfig) -> DipResult:
    ids = outcomes.sample_ids(task)
    right = np.stack([outcomes.right_draws(model, task, ids) for model in course.models]).astype(float)
    draws = [[outcomes.draws(model, task, sample) for sample in ids] for model in course.models]
    cut = np.array([[[record.cut for record in problem] for problem in model] for model in draws], dtype=float)
    generated = all(record.finish for model in draws for problem in model for record in problem)
    found = dip_and_recovery(
        course.steps, right[1:], right[0], cut=cut if generated and cut.any() else None, config=config
    )
    return length_beside(found, [[one for problem in model for one in problem] for model in draws], config.alpha)


def length_beside(found: DipResult, outcomes: Sequence[Sequence[Outcome]], alpha: float) -> DipResult:
    """The result with the lengths of the responses of base and of every checkpoint, where all were generated and have any."""
    if not all(own and all(one.finish for one in own) for own in outcomes):
        return found
    items = list(dict.fromkeys(one.sample_id for one in outcomes[0]))
    means = np.array([_mean_lengths(own, items) for own in outcomes])
    if not (means.mean(axis=1) > 0).all():
        return found
    turn = 1 if found.higher_is_better else -1
    scores = [turn * score for score in found.scores]
    length = length_course(found.steps, means, scores, turn * found.base_score, alpha=alpha)
    return found.model_copy(update={"length": length})


def _mean_lengths(outcomes: Sequence[Outcome], items: Sequence[str]) -> list[float]:
    """Mean response tokens of each item."""
    lengths: dict[str, list[int]] = {item: [] for item in items}
    for one in outcomes:
        lengths[one.sample_id].append(one.n_response_tokens)
    return [fmean(lengths[item]) for item in items]
