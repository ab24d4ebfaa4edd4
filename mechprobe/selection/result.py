"""What the ``select`` stage writes of a selection: ``selection.json``, and a table with one row per selected feature."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechprobe.dictionary.readout import Readout
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.gained import Gained
from mechprobe.selection.never_active import silence
from mechprobe.selection.rules import agnostic_features, relative_values
from mechprobe.selection.stability import jaccard

if TYPE_CHECKING:
    from mechprobe.selection.stage import Selection


def selection_summary(
    selection: "Selection",
    config: SelectConfig,
    *,
    gained: Gained,
    attribution: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything in ``selection.json``.

    Args:
        selection: As chosen.
        config: Settings.
        gained: G_t of every task; ``n_gained`` counts what was read of it, ``gained_sizes`` all of it.
        attribution: Ranking → task → what `mechprobe.selection.rankings.attribution` says of its path.
    """
    scores = selection.scores
    sizes: dict[str, Any] = {}
    for ranking in scores.rankings:
        values = scores.values(ranking)
        above = (relative_values(values) > config.threshold) & scores.live
        sizes[ranking] = {
            "per_task": dict(zip(scores.tasks, above.sum(axis=1).tolist(), strict=True)),
            "all_tasks": len(agnostic_features(values, config.threshold, live=scores.live)),
        }
    ids = list(selection.features)
    return {
        "features": ids,
        "rule": selection.rule,
        "ranking": selection.ranking,
        "site": selection.site,
        "pair": [config.base, config.tuned],
        "tasks": list(scores.tasks),
        "n_gained": dict(zip(scores.tasks, scores.n_gained, strict=True)),
        "gained_sizes": dict(gained.sizes),
        "too_few": dict(gained.too_few),
        "agnostic": list(selection.agnostic),
        "n_agnostic": selection.n_agnostic,
        "agnostic_sizes": sizes,
        "silent": silence(ids, scores),
        "scores": {
            name: {task: row[ids].tolist() for task, row in zip(scores.tasks, scores.values(name), strict=True)}
            for name in scores.rankings
        },
        "leave_one_task_out": {
            task: {"features": list(chosen), "jaccard": jaccard(set(chosen), set(ids))}
            for task, chosen in selection.left_out.items()
        },
        "stability": selection.stability,
        "controls": [list(drawn) for drawn in selection.controls],
        "control_match": selection.control_match,
        "attribution": {name: dict(tasks) for name, tasks in attribution.items()},
        "readout": str(Readout(config.readout, config.near)),
        "positions": config.positions,
        "pooling": config.pooling,
        "threshold": config.threshold,
        "note": selection.note,
        "crosscoder": selection.crosscoder,
    }


def selection_frame(selection: "Selection") -> pd.DataFrame:
    """One row per selected feature, best first.

    ``feature``, ``rank``, ``agnostic``, ``relative_min`` (the minimum over tasks that ranks), ``<ranking>_<task>``,
    ``density``, ``decoder_norm``, ``mean_act``, ``write``; ``bootstrap_frequency`` and ``above_<threshold>`` where stability was
    measured; ``left_out_<task>``: whether the set chosen without that task holds it too.
    """
    scores, ids = selection.scores, np.asarray(selection.features, dtype=np.int64)
    relative = relative_values(scores.values(selection.ranking))
    columns: dict[str, Any] = {
        "feature": ids,
        "rank": np.arange(len(ids)),
        "agnostic": np.isin(ids, selection.agnostic),
        "relative_min": relative.min(axis=0)[ids],
    }
    for name in scores.rankings:
        for task, row in zip(scores.tasks, scores.values(name), strict=True):
            columns[f"{name}_{task}"] = row[ids]
    columns |= {name: getattr(scores, name)[ids] for name in ("density", "decoder_norm", "mean_act")}
    columns["write"] = columns["decoder_norm"] * columns["mean_act"]
    bootstrap = selection.stability.get("bootstrap")
    if bootstrap:
        columns["bootstrap_frequency"] = np.asarray(bootstrap["frequency"], dtype=np.float64)
    for row in selection.stability.get("thresholds", {}).get("sizes", ()):
        columns[f"above_{row['threshold']:g}"] = (relative[:, ids] > row["threshold"]).all(axis=0) & scores.live[ids]
    for task, chosen in selection.left_out.items():
        columns[f"left_out_{task}"] = np.isin(ids, chosen)
    return pd.DataFrame(columns)
