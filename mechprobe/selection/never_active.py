"""Features of a set that never fire on the gained samples, where most edits of them have no effect."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool
from numpy import ndarray

from mechprobe.results import Result

_EFFECT_OF_EDITS = "ablating, scaling or transplanting {it} has no effect there, whereas a clamp still writes {it}"


class NeverActive(Result):
    """How many features of a set never fire on the tokens read of each task's gained samples."""

    n_features: int
    """Features of the set."""
    per_task: dict[str, int]
    """Task → features that never fire on its samples."""
    all_tasks: int
    """Features that never fire on the samples of any task."""
    sentence: str
    """The counts in words; empty if every feature fires on every task."""


def never_active(features: Sequence[int], fires: Bool[ndarray, "task d_sae"], tasks: Sequence[str]) -> NeverActive:
    """Count the features of a set that never fire; ``fires`` is that of `mechprobe.selection.scores.Scores`.

    Example:
        >>> never_active((0, 2), np.array([[True, True, False]]), ("simulation",)).per_task
        {'simulation': 1}
    """
    absent = ~fires[:, list(features)]
    per_task = dict(zip(tasks, absent.sum(axis=1).tolist(), strict=True))
    all_tasks = int(absent.all(axis=0).sum())
    sentence = _sentence(len(features), per_task, all_tasks)
    return NeverActive(n_features=len(features), per_task=per_task, all_tasks=all_tasks, sentence=sentence)


def never_active_sentences(result: Mapping[str, Any]) -> list[str]:
    """The sentence of a result with the key ``silent``, as a list that is empty if every feature fires."""
    sentence = result.get("silent", {}).get("sentence")
    return [sentence] if sentence else []


def _sentence(n_features: int, per_task: Mapping[str, int], all_tasks: int) -> str:
    if not any(per_task.values()):
        return ""
    if all_tasks == n_features:
        effect = _EFFECT_OF_EDITS.format(it="the set")
        return f"No feature of the set fires on any token read of the gained samples: {effect}."
    counts = ", ".join(f"{task} {n}" for task, n in per_task.items())
    whole = [task for task, n in per_task.items() if n == n_features]
    whole_set = f"; on {', '.join(whole)} the whole set" if whole else ""
    effect = _EFFECT_OF_EDITS.format(it="them")
    return (
        f"Of {n_features} features, some never fire on any token read of the gained samples: {counts} ({all_tasks} on all "
        f"tasks{whole_set}); {effect}."
    )
