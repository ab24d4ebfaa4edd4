"""Add models to a finished store, so that the base model runs once and serves every later checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, write_json
from mechprobe.stage_folder import MANIFEST, UNFINISHED


def reopen_for_more_models(folder: Path, config: Mapping[str, Any], models: Mapping[str, str]) -> bool:
    """Turn a finished store into an unfinished store with more models, if nothing else differs.

    Existing shards are kept. `Stage.open` reports any other difference.

    Args:
        folder: Folder of the store.
        config: Settings of the store that is asked for.
        models: Model name to fingerprint.

    Returns:
        Whether the store was reopened.
    """
    try:
        found = read_json(folder / MANIFEST)
        known, settings = dict(found["models"]), dict(found["config"])
    except (ArtifactError, KeyError, TypeError):
        return False
    if not known.items() < models.items() or not _same_except_models(settings, config):
        return False
    identity = {"stage": found["stage"], "config": dict(config), "inputs": found["inputs"], "models": dict(models)}
    write_json(folder / UNFINISHED, identity)
    (folder / MANIFEST).unlink()
    return True


def _same_except_models(found: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    dtypes, new = found.get("model_dtypes", {}), asked.get("model_dtypes", {})
    rest = [{key: value for key, value in config.items() if key != "model_dtypes"} for config in (found, asked)]
    return rest[0] == rest[1] and dtypes.items() <= new.items()
