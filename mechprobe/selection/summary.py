"""The contents of ``selection.json`` and ``selected.parquet``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.dictionary.readout import Readout
from mechprobe.environment import require
from mechprobe.selection.agnostic import agnostic_counts, jaccard, relative_values
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.gained import Gained
from mechprobe.selection.result import SHARED, AttributionPath, LeftOut, Selection, SelectionSummary

if TYPE_CHECKING:
    import pandas as pd


def selection_summary(
    selection: Selection,
    config: SelectConfig,
    *,
    gained: Gained,
    attribution: Mapping[str, Mapping[str, AttributionPath]],
) -> SelectionSummary:
    """The content of ``selection.json``; ``attribution`` maps a ranking and a task to the path of the attribution."""
    scores, ids = selection.scores, list(selection.features)
    by_ranking = {name: scores.values(name) for name in scores.rankings}
    return SelectionSummary(
        **{name: getattr(selection, name) for name in SHARED},
        pair=(config.base, config.tuned),
        tasks=scores.tasks,
        n_gained=dict(zip(scores.tasks, scores.n_gained, strict=True)),
        gained_sizes=gained.sizes,
        too_few=gained.too_few,
        agnostic_sizes={
            name: agnostic_counts(values, scores.tasks, selection.threshold, live=scores.live)
            for name, values in by_ranking.items()
        },
        silent=selection.never_active,
        scores={
            name: {task: tuple(row[ids].tolist()) for task, row in zip(scores.tasks, values, strict=True)}
            for name, values in by_ranking.items()
        },
        leave_one_task_out={
            task: LeftOut(features=chosen, jaccard=jaccard(set(chosen), set(ids)))
            for task, chosen in selection.left_out.items()
        },
        attribution={name: dict(tasks) for name, tasks in attribution.items()},
        readout=str(Readout(config.readout, config.near)),
        positions=config.positions,
        pooling=config.pooling,
    )


def selection_frame(selection: Selection) -> "pd.DataFrame":
    """One row per selected feature, best first.

    Columns: ``feature``, ``rank``, ``agnostic``, ``relative_min`` (the minimum over tasks that ranks),
    ``<ranking>_<task>``, ``density``, ``decoder_norm``, ``mean_act``, ``write`` (the contribution norm);
    ``bootstrap_frequency`` and ``above_<threshold>`` where stability was measured; and ``left_out_<task>``, whether the
    set chosen without that task contains the feature.
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
    if selection.stability is not None:
        if selection.stability.bootstrap is not None:
            columns["bootstrap_frequency"] = np.asarray(selection.stability.bootstrap.frequency, dtype=np.float64)
        for row in selection.stability.thresholds.sizes:
            above = (relative[:, ids] > row.threshold).all(axis=0)
            columns[f"above_{row.threshold:g}"] = above & scores.live[ids]
    for task, chosen in selection.left_out.items():
        columns[f"left_out_{task}"] = np.isin(ids, chosen)
    return require("pandas", "The table of selected features").DataFrame(columns)
