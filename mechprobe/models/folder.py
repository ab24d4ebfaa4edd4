"""Finding a model: a local folder or a snapshot of the hub that holds whole weights, or an adapter with its base."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mechprobe.errors import ModelError
from mechprobe.files import dump_json, sha256_bytes, sha256_file
from mechprobe.models.checkpoint import stored_tensors, weight_files
from mechprobe.models.formats import foreign_file, foreign_folder, model_folders_below
from mechprobe.models.hub import download
from mechprobe.progress import activity

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_HASHED = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
_PLACE_OF_BASE = ("base_model_name_or_path", "revision", "inference_mode")
"""Entries of an adapter's config that its fingerprint leaves out, because that of the base stands for them."""
_MOST_ADAPTERS = 4


@dataclass(frozen=True)
class ModelFolder:
    """Where the files of a model are.

    Attributes:
        path: Folder with the weights, or with the adapter.
        revision: Commit of a model of the hub; None for a local folder.
        base: The model that the adapter in ``path`` changes; None if ``path`` holds whole weights.
    """

    path: Path
    revision: str | None = None
    base: "ModelFolder | None" = None

    @property
    def root(self) -> "ModelFolder":
        """The folder with whole weights and config below all adapters."""
        return self if self.base is None else self.base.root

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: that of the adapter if it has one, else that of its base."""
        if self.base is None or any((self.path / name).is_file() for name in _TOKENIZER_FILES):
            return self.path
        return self.base.tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights and config; ``commit:sha256`` for a model of the hub; ``BASE+adapter:…`` with an adapter."""
        with activity(f"hashing the weights of {self.path.name}"):
            digest = _digest(self.path) if self.base is None else _adapter_digest(self.path)
        own = digest if self.revision is None else f"{self.revision}:{digest}"
        return own if self.base is None else f"{self.base.fingerprint}+adapter:{own}"


def find_model(path_or_name: str | Path, *, role: str, trust_remote_code: bool = False) -> ModelFolder:
    """Find the folder of a model; a model of the hub is downloaded unless it is cached. No weights are read.

    Args:
        path_or_name: A folder, or ``org/name``, or ``org/name@revision`` (branch, tag or commit of the hub). The folder or
            repository may hold an adapter; its base is found in the same way.
        role: Name of the model in error messages.
        trust_remote_code: Whether to download Python code that a repository of the hub brings.

    Raises:
        ModelError: The folder is incomplete, damaged or of another program, or the hub does not provide the model.
    """
    return _found(path_or_name, role, trust_remote_code, depth=0)


def _found(path_or_name: str | Path, role: str, trust: bool, *, depth: int) -> ModelFolder:
    path, revision = _place(path_or_name, role, trust)
    if not (path / ADAPTER_CONFIG).is_file():
        _check_whole(path, role)
        return ModelFolder(path, revision)
    _check_adapter(path, role)
    config = adapter_config(path, role)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"Model {role}: {path}/{ADAPTER_CONFIG} does not name the model that it adapts; set base_model_name_or_path there."
        )
    if depth >= _MOST_ADAPTERS:
        raise ModelError(f"Model {role}: {path} adapts an adapter of an adapter, and so on without end; merge them.")
    beside = path / base
    where = beside if not Path(base).exists() and beside.is_dir() else base
    at = f"@{config['revision']}" if config.get("revision") and not Path(where).exists() else ""
    try:
        return ModelFolder(path, revision, _found(f"{where}{at}", role, trust, depth=depth + 1))
    except ModelError as error:
        reason = str(error).removeprefix(f"Model {role}: ").rstrip(".")
        raise ModelError(
            f"Model {role}: {path} is an adapter, and its base cannot be used: {reason} "
            f"(base_model_name_or_path in {ADAPTER_CONFIG} names the base)."
        ) from None


def _place(path_or_name: str | Path, role: str, trust: bool) -> tuple[Path, str | None]:
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path, None
    if path.is_file():
        what, mend = foreign_file(path)
        raise ModelError(f"Model {role}: {path} {what}; {mend}.")
    text, at, revision = str(path_or_name).partition("@")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1 or (at and not revision):
        raise ModelError(
            f"Model {role}: {path_or_name} does not exist; give a model folder, or a hub name such as org/name or "
            "org/name@revision."
        )
    folder = download(text, revision or None, role=role, trust_remote_code=trust)
    return folder, folder.name


def _check_whole(folder: Path, role: str) -> None:
    """Raise `ModelError` for a folder without config or weights, or with incomplete shards."""
    files = weight_files(folder, role=role)
    if files and (folder / "config.json").is_file():
        stored_tensors(folder, role=role)
        return
    if not files and (foreign := foreign_folder(folder)) is not None:
        raise ModelError(f"Model {role}: {folder} {foreign.what}; {foreign.mend}.")
    below = model_folders_below(folder)
    if below:
        names = ", ".join(str(place.relative_to(folder)) for place in below[:3]) + (", …" if len(below) > 3 else "")
        raise ModelError(
            f"Model {role}: {folder} is no model itself but holds some ({names}); give one of them, such as {below[0]}."
        )
    if any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        raise ModelError(
            f"Model {role}: {folder} holds the weights of an adapter without {ADAPTER_CONFIG}; copy that file there."
        )
    lacks = "weights" if (folder / "config.json").is_file() else "config.json"
    raise ModelError(f"Model {role}: {folder} has no {lacks}; give a folder written by save_pretrained.")


def _check_adapter(folder: Path, role: str) -> None:
    """Raise `ModelError` for an adapter without weights, or beside the weights of a whole model."""
    if weight_files(folder, role=role):
        raise ModelError(
            f"Model {role}: {folder} holds an adapter ({ADAPTER_CONFIG}) beside the weights of a whole model, so it is not "
            "clear which is meant; move one of them into a folder of its own, or save the merged model "
            "(merge_and_unload of peft)."
        )
    if not any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        raise ModelError(
            f"Model {role}: {folder} has {ADAPTER_CONFIG} but neither {' nor '.join(_ADAPTER_WEIGHTS)}; "
            "save the adapter there with save_pretrained."
        )


def adapter_config(folder: Path, role: str) -> dict[str, Any]:
    """Read ``adapter_config.json``; raise `ModelError` if it is not a JSON object."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"Model {role}: {folder}/{ADAPTER_CONFIG} is not a JSON object; save the adapter again.")
    return config


def adapter_weights(folder: Path) -> Path:
    """The weight file of an adapter."""
    return next(folder / name for name in _ADAPTER_WEIGHTS if (folder / name).is_file())


def _digest(folder: Path) -> str:
    """sha256 over the weight files, the config, and the code of a folder that brings its own, in the order of names."""
    code = folder.rglob("*.py") if "auto_map" in _json(folder / "config.json") else ()
    files = sorted({*(file for pattern in _HASHED for file in folder.glob(pattern)), folder / "config.json", *code})
    return sha256_bytes("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())


def _adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's weights and settings."""
    settings = {name: value for name, value in _json(folder / ADAPTER_CONFIG).items() if name not in _PLACE_OF_BASE}
    return sha256_bytes(f"{sha256_file(adapter_weights(folder))}\n{dump_json(settings)}".encode())


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
