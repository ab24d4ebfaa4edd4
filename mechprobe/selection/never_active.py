"""Features of a set that never fire on the gained samples: edits of them do nothing there, whatever they are said to show."""

from collections.abc import Sequence
from typing import Any

from mechprobe.selection.rankings.scores import Scores


def silence(features: Sequence[int], scores: Scores) -> dict[str, Any]:
    """How many features of a set are active on none of the tokens read of a task's gained samples (`Scores.fires`).

    Args:
        features: The set.
        scores: Of the selection.

    Returns:
        ``n_features``; ``per_task``: task → silent features; ``all_tasks``: those that are silent on every task;
        ``sentence``: the same in words, empty where none is silent. Empty for scores of a version that did not look.

    Example:
        >>> silence((0, 2), scores)["per_task"]  # doctest: +SKIP
        {'simulation': 1, 'diagnostic': 0}
    """
    if scores.fires is None:
        return {}
    silent = ~scores.fires[:, list(features)]
    found = {
        "n_features": len(features),
        "per_task": dict(zip(scores.tasks, silent.sum(axis=1).tolist(), strict=True)),
        "all_tasks": int(silent.all(axis=0).sum()),
    }
    return {**found, "sentence": _sentence(**found)}


_WHAT_EDITS_DO = "ablating, scaling or transplanting {} does nothing there, a clamp writes {} all the same"


def _sentence(n_features: int, per_task: dict[str, int], all_tasks: int) -> str:
    """What is silent where; one clause more for tasks on which the whole set is."""
    if not any(per_task.values()):
        return ""
    if all_tasks == n_features:
        edits = _WHAT_EDITS_DO.format("it", "it")
        return f"No feature of the set fires on any token read of the gained samples: {edits}."
    counts = ", ".join(f"{task} {n}" for task, n in per_task.items())
    whole = [task for task, n in per_task.items() if n == n_features]
    told = f"; on {', '.join(whole)} the whole set" if whole else ""
    edits = _WHAT_EDITS_DO.format("them", "them")
    return (
        f"Of {n_features} features, silent on every token read of the gained samples: {counts} ({all_tasks} on all "
        f"tasks{told}); {edits}."
    )
