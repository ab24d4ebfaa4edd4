"""One row per feature over an arm: its trajectory, NRN, latent scaling and RelIE; and the live features for the curves."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.emergence.arms import Arm
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import ArmNumbers
from mechprobe.emergence.trajectories import shares, trajectories
from mechprobe.environment import require
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.selection.rankings.relie import IndirectEffects, relie_intervals
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd


def arm_columns(table: FeatureTable, arm: Arm, base: str) -> Float[ndarray, "d_sae column"]:
    """Decoder norms (L1, in the models' own units) of base and the checkpoints of an arm."""
    return table.frame[[f"norm_l1_{name}" for name in (base, *arm.checkpoints)]].to_numpy(dtype=np.float64)


def arm_numbers(crosscoder: Crosscoder, table: FeatureTable, arm: Arm, config: EmergenceConfig) -> ArmNumbers:
    """The live features of one dictionary, as the curves need them."""
    alive = ~table.dead
    scale = crosscoder.scale.detach().double().cpu().numpy()
    columns = [crosscoder.model_index(name) for name in (config.base, *arm.checkpoints)]
    decoder = crosscoder.W_dec.detach().double().cpu().numpy()[:, columns] * scale[columns, None]
    return ArmNumbers(
        norms=arm_columns(table, arm, config.base)[alive],
        decoder=decoder[alive],
        confirmed=confirmed_absences(table, arm, config)[alive],
        progress=np.array(arm.dated),
        top=config.top,
        specific_nrn=config.thresholds.specific_nrn,
    )


def confirmed_absences(table: FeatureTable, arm: Arm, config: EmergenceConfig) -> Bool[ndarray, "d_sae checkpoint"]:
    """Whether latent scaling (arXiv 2504.02922) confirms that one of base and checkpoint lacks the feature.

    If NRN is 1/2 or more, base must lack it, otherwise the checkpoint.
    """
    columns = []
    for name in arm.checkpoints:
        gained = _absent(table, owner=name, other=config.base)
        lost = _absent(table, owner=config.base, other=name)
        columns.append(np.where(table.frame[f"nrn_{name}"].to_numpy() >= 0.5, gained, lost))
    return np.stack(columns, axis=1).astype(bool)


def _absent(table: FeatureTable, *, owner: str, other: str) -> Bool[ndarray, " d_sae"]:
    frame, limits = table.frame, table.thresholds
    agrees = np.ones(len(frame), dtype=bool)
    for target, most in (("error", limits.nu_error_max), ("reconstruction", limits.nu_reconstruction_max)):
        own = frame[f"beta_{target}_{owner}_{owner}"].to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            nu = frame[f"beta_{target}_{owner}_{other}"].to_numpy() / own
            agrees &= (own > 0) & (nu <= most)
    return agrees


def feature_frame(table: FeatureTable, arm: Arm, config: EmergenceConfig) -> "pd.DataFrame":
    """One row per feature over an arm, with all columns of `Emergence.table` except those that `with_relie` adds."""
    names = (config.base, *arm.checkpoints)
    dead = table.dead
    norms = np.nan_to_num(arm_columns(table, arm, config.base))
    found = trajectories(norms, dead, np.array(arm.dated), config.thresholds)
    confirmed, share = confirmed_absences(table, arm, config), shares(norms)
    columns: dict[str, Any] = {"feature": np.arange(len(table)), "alive": ~dead, **vars(found)}
    for name in ("onset", "peak"):
        columns[name] = [None if column < 0 else names[column] for column in columns[name]]
    for column, name in enumerate(names):
        columns[f"norm_{name}"] = np.where(dead, np.nan, norms[:, column])
        columns[f"share_{name}"] = np.where(dead, np.nan, share[:, column])
        if column:
            columns[f"nrn_{name}"] = table.frame[f"nrn_{name}"].to_numpy()
            columns[f"confirmed_{name}"] = confirmed[:, column - 1]
    return require("pandas", "The feature table").DataFrame(columns)


def with_relie(
    frame: "pd.DataFrame", effects: IndirectEffects, weights: Float[ndarray, "draw group"]
) -> "pd.DataFrame":
    """`feature_frame` with the columns of RelIE; ``weights`` are `mechprobe.selection.rankings.relie.group_draws`."""
    ends, relie = relie_intervals(effects, weights), effects.relie
    columns: dict[str, Any] = {"n_relie": ends.n_groups}
    for column, name in enumerate(effects.models):
        columns[f"ie_{name}"] = effects.effect[:, column]
        columns[f"relie_{name}"] = relie[:, column]
        columns[f"low_relie_{name}"] = ends.low[:, column]
        columns[f"high_relie_{name}"] = ends.high[:, column]
    return frame.assign(**columns)
