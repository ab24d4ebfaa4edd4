"""Checks that the crosscoder, models, site and outcomes of a selection belong together, before anything is computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.dictionary.readout import check_near
from mechprobe.errors import ArtifactError, ConfigError, ModelError
from mechprobe.models.family import ModelFamily
from mechprobe.selection.config import SelectConfig
from mechprobe.stage_folder import MANIFEST, input_hash, read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder


def check_parts(
    crosscoder: Crosscoder, family: ModelFamily, site: Site, config: SelectConfig, inputs: Mapping[str, Path | str]
) -> None:
    """Raise an error for parts that do not belong together.

    The manifests of ``crosscoder`` and ``evals`` in ``inputs`` record the models and the site of these stages.

    Raises:
        ConfigError: Base, tuned or one of ``near`` is not a model of the crosscoder, or base and tuned are the same.
        SiteError: The models have no such site.
        ModelError: The family lacks a model of the crosscoder, or a model has another width.
        ArtifactError: The crosscoder is of another site, or the crosscoder or the outcomes are of other models.
        SaeTrainingError: The crosscoder reads several sites.
    """
    crosscoder.require_one_site()
    _check_names(crosscoder.model_names, family, config)
    site.check(family.n_layers)
    for name, width in zip(crosscoder.model_names, crosscoder.config.widths, strict=True):
        if family[name].d_model != width:
            raise ModelError(
                f"The crosscoder expects width {width} for {name}, but the model's residual stream has width "
                f"{family[name].d_model}; give the models that the crosscoder was trained on."
            )
    trained = stage_manifest(inputs, "crosscoder").get("config", {}).get("site")
    if isinstance(trained, str) and trained != str(site):
        raise ArtifactError(
            f"The crosscoder was trained at {trained}, but features are to be read at {site}; select at {trained}, or "
            f"train a crosscoder at {site}."
        )
    for part, what, again in (
        ("crosscoder", "The crosscoder was trained on", "mechprobe cache and train-sae"),
        ("evals", "The outcomes are of", "mechprobe evaluate"),
    ):
        check_models(stage_manifest(inputs, part), family, crosscoder.model_names, what, again)


def _check_names(names: tuple[str, ...], family: ModelFamily, config: SelectConfig) -> None:
    """Check that base, tuned and ``near`` are models of the crosscoder, and that the family has all of its models."""
    of_crosscoder = ", ".join(names)
    if config.base == config.tuned:
        raise ConfigError(f"select.base and select.tuned are both '{config.base}'; name two models.")
    for role, model in (("base", config.base), ("tuned", config.tuned)):
        if model not in names:
            raise ConfigError(
                f"select.{role} is '{model}', but the models of the crosscoder are {of_crosscoder}; name one of them."
            )
    check_near(config.near, names)
    missing = [name for name in names if name not in family]
    if missing:
        raise ModelError(
            f"The family has no '{missing[0]}' (it has {', '.join(family.names)}), but the models of the crosscoder are "
            f"{of_crosscoder}; give all of them."
        )


def check_selection_folder(folder: Path, evals: Path) -> None:
    """Check that a folder is a finished selection made from the outcomes in ``evals``.

    Raises:
        ArtifactError: It is not, or it was made from other outcomes.
    """
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; give the folder that `mechprobe select --out` wrote.")
    manifest = read_manifest(folder)
    if manifest["stage"] != "select":
        raise ArtifactError(
            f"{folder} holds the stage '{manifest['stage']}' instead of a selection; give the folder that "
            "`mechprobe select --out` wrote."
        )
    made_from = manifest["inputs"].get("evals")
    if made_from is None or not (evals / MANIFEST).is_file():
        return
    found = input_hash(evals)
    if made_from != found:
        raise ArtifactError(
            f"{folder} was selected from other outcomes than those of this run ({made_from[:12]} there, {found[:12]} in "
            f"{evals}); name its own run with --run, or select again."
        )


def stage_manifest(inputs: Mapping[str, Path | str], part: str) -> dict[str, Any]:
    """The manifest of an input that is a finished stage; empty otherwise."""
    folder = Path(inputs[part]) if part in inputs else None
    return read_manifest(folder) if folder is not None and (folder / MANIFEST).is_file() else {}


def check_models(
    manifest: Mapping[str, Any], family: ModelFamily, names: tuple[str, ...], what: str, again: str
) -> None:
    """Raise `ArtifactError` if a stage was made with another model than the family's of the same name.

    The error begins with ``what``, for example "The outcomes are of", and names the command ``again``.
    """
    made_of = manifest.get("models") or {}
    for name in names:
        if name in made_of and made_of[name] != family[name].fingerprint:
            raise ArtifactError(
                f"{what} another model '{name}' ({made_of[name][:12]} there, {family[name].fingerprint[:12]} now); "
                f"give the same models, or run {again} again."
            )
