"""The sets of features that an intervention run edits, and the directions of its equal-norm controls."""

from typing import TYPE_CHECKING

import numpy as np

from mechprobe.interventions.config import InterveneConfig
from mechprobe.selection.config import Ranking
from mechprobe.selection.result import Selection

if TYPE_CHECKING:
    import pandas as pd


def choose_sets(
    selection: Selection, config: InterveneConfig, table: "pd.DataFrame | None"
) -> tuple[Selection, dict[str, Selection]]:
    """The set under test with its random sets, and the sets of the other rankings by name.

    Args:
        selection: A finished selection.
        config: ``features``, ``ranking`` and ``threshold`` may ask for another set from its scores.
        table: Feature table, for ``rule:`` specifications.
    """
    rule = config.features or selection.rule

    def choose(ranking: Ranking | None, n_controls: int) -> Selection:
        return selection.choose(
            rule, ranking=ranking, n_controls=n_controls, threshold=config.threshold, seed=config.seed, table=table
        )

    chosen = choose(config.ranking, config.n_random)
    by_ranking = rule.startswith(("top", "agnostic"))
    others = {
        f"{rule} by {ranking}": choose(ranking, 0)
        for ranking in config.compare
        if by_ranking and ranking != chosen.ranking
    }
    return chosen, others


def shuffled_directions(selection: Selection, *, seed: int, draw: int) -> list[int]:
    """As many live features outside the selection as it has; an equal-norm control writes along their decoder directions.

    Args:
        selection: The set under test.
        seed: Seed of the run.
        draw: Number of the control.
    """
    live = (selection.scores.density > 0) & (selection.scores.decoder_norm > 0)
    live[list(selection.features)] = False
    pool = np.flatnonzero(live)
    return [int(k) for k in np.random.default_rng([seed, 1, draw]).choice(pool, len(selection.features), replace=False)]
