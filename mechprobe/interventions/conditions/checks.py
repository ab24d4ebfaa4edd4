"""Whether selection, crosscoder, models and samples of an intervention belong together, before anything is run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mechprobe.dictionary.readout import check_near
from mechprobe.errors import ArtifactError
from mechprobe.evals.tasks import Task
from mechprobe.interventions.config import InterveneConfig
from mechprobe.models.family import ModelFamily
from mechprobe.selection.checks import check_models, stage_manifest
from mechprobe.selection.stage import Selection
from sae_training import Crosscoder


def check_belongs(
    selection: Selection,
    crosscoder: Crosscoder,
    family: ModelFamily,
    config: InterveneConfig,
    inputs: Mapping[str, Path | str],
    tasks: Sequence[Task] = (),
) -> None:
    """Refuse parts that do not belong together.

    Args:
        selection: The features.
        crosscoder: Their dictionary.
        family: The models that are edited.
        config: Names base and tuned.
        inputs: Stage folders; the manifests of ``crosscoder`` and ``selection`` tell what those were made of.
        tasks: What the edits are judged on.

    Raises:
        ConfigError: ``near`` names a model that is none of the crosscoder's.
        ArtifactError: The selection is of another crosscoder, of other models or of another pair of them, or a sample that
            is to judge the features selected them.
    """
    if selection.crosscoder != crosscoder.fingerprint:
        raise ArtifactError(
            f"The selection was made with crosscoder {selection.crosscoder[:12]}, this one is "
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
            f"The features were selected for {pair[1]} against {pair[0]}, and the edits are of {config.tuned} and "
            f"{config.base}; select for that pair first."
        )
    gained = settings.get("gained") or {}
    for task in tasks:
        used = set(gained.get(task.name, ())) & {sample.id for sample in task.samples}
        if used:
            raise ArtifactError(
                f"{len(used)} samples of {task.name} ({min(used)} ...) selected the features and would judge them too: "
                "select.seed or evaluate.n_per_task is not what the selection was made with; give the same, or select again."
            )
