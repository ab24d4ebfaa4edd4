"""Model folders: where a local path or a hub name leads, whether its files are whole, and their hash."""

from pathlib import Path

from mechprobe.errors import ModelError, first_line
from mechprobe.files import sha256_bytes, sha256_file

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_folder(path_or_name: str | Path, *, role: str) -> tuple[Path, str | None]:
    """Find the local folder of a model; a model of the hub is downloaded unless it is cached.

    Args:
        path_or_name: A folder, or ``org/name``, or ``org/name@revision`` (branch, tag or commit of the hub).
        role: Name of the model in error messages.

    Returns:
        ``(folder, commit)``. The commit is that of the hub's snapshot, and None for a local folder.

    Raises:
        ModelError: The folder is incomplete or damaged, or the hub does not provide the model.
    """
    path = Path(path_or_name)
    if path.is_dir():
        _check_folder(path, role=role)
        return path, None
    text, at, revision = str(path_or_name).partition("@")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1 or (at and not revision):
        raise ModelError(
            f"Model {role}: {path} does not exist; give a model folder, or a hub name such as org/name or "
            "org/name@revision."
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(text, revision=revision or None, allow_patterns=_HUB_PATTERNS))
        return folder, folder.name  # the cache of the hub names a snapshot by its commit
    except Exception as error:  # noqa: BLE001 - the hub client raises many unrelated types
        raise ModelError(
            f"Model {role}: {path_or_name} is not a local folder, and the hub did not provide it "
            f"({type(error).__name__}); check the name and revision, or download the model first."
        ) from None


def _check_folder(folder: Path, *, role: str) -> None:
    """Raise `ModelError` for a folder without config or weights, or with a damaged weight file."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"Model {role}: {folder} has no config.json; give a folder written by save_pretrained.")
    if not any(match for pattern in _WEIGHTS for match in folder.glob(pattern)):
        raise ModelError(f"Model {role}: {folder} has no weights; give a folder written by save_pretrained.")
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"Model {role}: {file} is not a readable safetensors file ({first_line(error)}); copy it again."
            ) from None


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the weight files and the config of a model folder, in the order of their names."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)} | {folder / "config.json"})
    return sha256_bytes("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())
