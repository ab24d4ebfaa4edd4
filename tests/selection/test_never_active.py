"""Features of a set that never fire on the gained samples: counted by hand, and reported in one sentence."""

import numpy as np
import pytest

from mechprobe.selection.never_active import never_active, never_active_sentences

FIRES = np.array([[True, False, False, True], [True, True, False, False]])


@pytest.mark.parametrize(
    ("features", "per_task", "all_tasks", "facts"),
    [
        ((0,), (0, 0), 0, ()),
        ((), (0, 0), 0, ()),
        ((0, 1), (1, 0), 0, ("Of 2 features", "sum 1, pair 0", "0 on all tasks")),
        ((2, 3, 0), (1, 2), 1, ("Of 3 features", "sum 1, pair 2", "1 on all tasks", "clamp")),
        ((2, 3), (1, 2), 1, ("sum 1, pair 2", "1 on all tasks", "on pair the whole set")),
        ((2,), (1, 1), 1, ("No feature of the set", "clamp")),
        ((1, 3), (1, 1), 0, ("0 on all tasks",)),
    ],
)
def test_counts_by_hand(
    features: tuple[int, ...], per_task: tuple[int, int], all_tasks: int, facts: tuple[str, ...]
) -> None:
    found = never_active(features, FIRES, ("sum", "pair"))
    assert (found.n_features, found.all_tasks) == (len(features), all_tasks)
    assert found.per_task == {"sum": per_task[0], "pair": per_task[1]}
    assert all(fact in found.sentence for fact in facts)
    assert bool(found.sentence) == bool(facts)
    assert never_active_sentences({"silent": found.to_dict()}) == ([found.sentence] if facts else [])
