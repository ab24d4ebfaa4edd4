"""The contents of ``selection.json`` and ``selected.parquet``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechprobe.dictionary.readout import Readout
from mechprobe.selection.agnostic import relative_values
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.gained import Gained
from mechprobe.selection.result import AttributionPath, LeftOut, Selection, SelectionSummary
from mechprobe.selection.thresholds import above_threshold, agnostic_counts, jaccard


def selection_summary(
    selection: Selection,
    config: SelectConfig,
    *,
    gained: Gained,
    attribution: Mapping[str, Mapping[str, AttributionPath]],
) -> SelectionSummary:
    """The content of ``selection.json``.

    Args:
        selection: The chosen features, with their controls and stability.
        config: Settings.
        gained: G_t of every task. ``n_gained`` counts the samples that were read, ``gained_sizes`` all of them.
        attribution: Ranking → task → the path of the attribution.
    """
    scores, ids = selection.scores, list(selection.features)
    by_ranking = {name: scores.values(name) for name in scores.rankings}
    return SelectionSummary(
        features=selection.features,
        rule=selection.rule,
        ranking=selection.ranking,
        site=selection.site,
        pair=(config.base, config.tuned),
        tasks=scores.tasks,
        n_gained=dict(zip(scores.tasks, scores.n_gained, strict=True)),
        gained_sizes=gained.sizes,
        too_few=gained.too_few,
        agnostic=selection.agnostic,
        n_agnostic=selection.n_agnostic,
        agnostic_sizes={
            name: agnostic_counts(above_threshold(values, config.threshold, scores.live), scores.tasks)
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
        stability=selection.stability,
        controls=selection.controls,
        control_match=selection.control_match,
        attribution={name: dict(tasks) for name, tasks in attribution.items()},
        readout=str(Readout(config.readout, config.near)),
        positions=config.positions,
        pooling=config.pooling,
        threshold=config.threshold,
        note=selection.note,
        crosscoder=selection.crosscoder,
    )


def selection_frame(selection: Selection) -> pd.DataFrame:
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
    columns |= _stability_columns(selection, relative, ids)
    for task, chosen in selection.left_out.items():
        columns[f"left_out_{task}"] = np.isin(ids, chosen)
    return pd.DataFrame(columns)


def _stability_columns(selection: Selection, relative: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    stability, live = selection.stability, selection.scores.live
    if stability is None:
        return {}
    columns = {}
    if stability.bootstrap is not None:
        columns["bootstrap_frequency"] = np.asarray(stability.bootstrap.frequency, dtype=np.float64)
    for row in stability.thresholds.sizes:
        columns[f"above_{row.threshold:g}"] = (relative[:, ids] > row.threshold).all(axis=0) & live[ids]
    return columns
