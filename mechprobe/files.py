"""Files that are written whole or not at all, JSON, tables, and sha256 hashes."""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from sae_training import atomic

if TYPE_CHECKING:
    import pandas as pd


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically; a reader sees the old file or the new one, never a part.

    Raises:
        ArtifactError: The file cannot be written. An older file is then unchanged.
    """
    try:
        atomic.write_bytes(Path(path), data)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free space and run the same command again" if full else "give another folder"
        raise ArtifactError(f"{path} cannot be written ({error.strerror or error}); {advice}.") from None


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text with `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any, *, sort_keys: bool = True) -> None:
    """Write the text of `dump_json` with `write_bytes`."""
    write_text(path, dump_json(value, sort_keys=sort_keys))


def dump_json(value: Any, *, sort_keys: bool = True) -> str:
    """Format a value as JSON, with sorted keys by default and an indent of two spaces; NaN and infinities become null."""
    return json.dumps(_finite(value), indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot express, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def read_json(path: Path | str) -> Any:
    """Parse a JSON file.

    Raises:
        ArtifactError: The file is missing, cannot be read, or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist; run the stage that writes it first.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}); run its stage again with --force.") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of the bytes of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder, and keep the folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process was writing anywhere below a folder."""
    for path in sorted(folder.rglob(f"*{atomic.PARTIAL}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def nearest_folder(folder: Path | str) -> Path:
    """Return the folder itself or its nearest existing parent; raise `ArtifactError` if that is not a folder."""
    place = Path(folder).absolute()
    try:
        while not _exists(place):
            place = place.parent
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{folder} cannot be created ({reason}); give another --out.") from None
    if not place.is_dir():
        raise ArtifactError(f"{folder} cannot be a folder because {place} is a file; give another --out.")
    return place


def _exists(path: Path) -> bool:
    """Whether a path exists; unlike `Path.exists`, raises `OSError` for a path that can never exist."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def read_frame(path: Path, user: str) -> "pd.DataFrame":
    """Read a table that mechprobe wrote as Parquet, in one thread: where the system refuses a thread, Arrow waits for it for ever.

    Args:
        path: The file.
        user: The part that needs it, for the message.

    Raises:
        DependencyError: pandas or pyarrow is not installed.
        OSError: The file is missing or damaged. `ValueError` and its kinds are possible, too.
    """
    require("pandas", user)
    with require("pyarrow.parquet", user).ParquetFile(path) as file:
        return file.read(use_threads=False).to_pandas(use_threads=False)
