"""Adding models to a finished store: the base is run once and serves every checkpoint that comes later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, write_json
from mechprobe.stage_folder import MANIFEST, UNFINISHED


def reopen_for_more_models(folder: Path, config: Mapping[str, Any], models: Mapping[str, str]) -> bool:
    """Make a finished store an unfinished one of more models, when only models are new; returns whether it did.

    The shards of the models that are there are kept; anything else that differs is left for `Stage.open` to name.
    """
    try:
        found = read_json(folder / MANIFEST)
        known, settings = dict(found["models"]), dict(found["config"])
    except (ArtifactError, KeyError, TypeError):
        return False
    if not known.items() < models.items() or not _same_but_for_models(settings, config):
        return False
    identity = {"stage": found["stage"], "config": dict(config), "inputs": found["inputs"], "models": dict(models)}
    write_json(folder / UNFINISHED, identity)
    (folder / MANIFEST).unlink()
    return True


def _same_but_for_models(found: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    dtypes, new = found.get("model_dtypes", {}), asked.get("model_dtypes", {})
    rest = [{key: value for key, value in config.items() if key != "model_dtypes"} for config in (found, asked)]
    return rest[0] == rest[1] and dtypes.items() <= new.items()
