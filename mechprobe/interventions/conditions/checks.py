"""Checks that selection, crosscoder, models and samples of an intervention belong together, before anything runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mechprobe.dictionary.readout import check_near
from mechprobe.errors import ArtifactError
from mechprobe.evals.tasks import Task
from mechprobe.interventions.config import InterveneConfig
from mechprobe.models.family import ModelFamily
from mechprobe.selection.checks import check_models, stage_manifest
from mechprobe.selection.result import Selection
from sae_training import Crosscoder


def check_belongs(
    selection: Selection,
    crosscoder: Crosscoder,
    family: ModelFamily,
    config: InterveneConfig,
    inputs: Mapping[str, Path | str],
    tasks: Sequence[Task] = (),
) -> None:
    """Raise where the parts of an intervention do not belong together.

    Of ``inputs``, the manifests of ``crosscoder`` and ``selection`` record what they were made from. ``tasks`` hold the samples
    that judge the edits.

    Raises:
        ConfigError: ``near`` names a model that the crosscoder lacks.
        ArtifactError: The selection belongs to another crosscoder, to other models or to another pair of models, or a judging
            sample also selected the features.
    """
    if selection.crosscoder != crosscoder.fingerprint:
        raise ArtifactError(
            f"The selection was made with crosscoder {selection.crosscoder[:12]}, but the edits use "
            f"{crosscoder.fingerprint[:12]}; run `mechprobe select` again."
        )
    check_near(config.near, crosscoder.model_names)
    chosen = stage_manifest(inputs, "selection")
    for manifest, what, again in (
        (stage_manifest(inputs, "crosscoder"), "The crosscoder was trained on", "mechprobe cache and train-sae"),
        (chosen, "The features were selected with", "mechprobe select"),
    ):
        check_models(manifest, family, crosscoder.model_names, what, again)
    settings = chosen.get("config") or {}
    pair = (settings.get("base", config.base), settings.get("tuned", config.tuned))
    if pair != (config.base, config.tuned):
        raise ArtifactError(
            f"The features were selected for {pair[1]} against {pair[0]}, but the edits are of {config.tuned} and "
            f"{config.base}; run `mechprobe select` for that pair first."
        )
    gained = settings.get("gained") or {}
    for task in tasks:
        used = set(gained.get(task.name, ())) & {sample.id for sample in task.samples}
        if used:
            raise ArtifactError(
                f"{len(used)} samples of {task.name} ({min(used)} ...) selected the features and would also judge them, because "
                "select.seed or evaluate.n_per_task changed since the selection; restore them, or select again."
            )
