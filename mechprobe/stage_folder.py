"""Stage folders: every stage writes one folder, and its manifest says from what the folder was made."""

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mechprobe.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    MechprobeError,
    ModelError,
    SelectionError,
    SiteError,
)
from mechprobe.files import dump_json, read_json, sha256_bytes, sha256_file, write_json

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SCHEMA_VERSION = 1
Remake = bool | Literal["refused"]
_REFUSED = "refused"
_BAD_INPUT = (ConfigError, InputError, ModelError, SelectionError, SiteError)
"""Errors that the same command meets again, unlike a full disk."""
_PACKAGES = (
    "mechprobe",
    "torch",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "numpy",
    "h5py",
    "trl",
    "lm-eval",
    "math-verify",
)


@cache
def environment() -> dict[str, Any]:
    """Python, platform, package versions and the git commit of the code, for a manifest."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if dirty else "")


def input_hash(path: Path | str) -> str:
    """sha256 that stands for an input: of a stage folder its outputs' hashes, of a file its bytes."""
    path = Path(path)
    if path.is_dir():
        manifest = read_manifest(path)
        check_outputs(path, manifest)
        return sha256_bytes(dump_json([manifest["config"], manifest["inputs"], manifest["outputs"]]).encode())
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that writes it first.")
    return sha256_file(path)


def check_outputs(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` for an output that is gone or is not what the stage wrote."""
    for name, digest in manifest["outputs"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is gone though {folder} is finished; make the stage again with --force.")
        if sha256_file(path) != digest:
            raise ArtifactError(f"{path} was changed since its stage wrote it; make the stage again with --force.")


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a finished stage folder; `ArtifactError` where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; run the stage that writes it first.")
    if not (folder / MANIFEST).is_file():
        state = "an unfinished stage" if (folder / UNFINISHED).is_file() else "no stage folder"
        raise ArtifactError(f"{folder} is {state} (it has no {MANIFEST}); run the stage that writes it to its end.")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not {"stage", "config", "inputs", "outputs"} <= manifest.keys():
        raise ArtifactError(f"{folder / MANIFEST} is no mechprobe manifest; make the stage again with --force.")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of everything else in a manifest; it stands in the manifest as ``digest``."""
    return sha256_bytes(dump_json({key: value for key, value in manifest.items() if key != "digest"}).encode())


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Sentences 'name: old -> new' for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {_short(old)} there, {_short(new)} asked"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class Stage:
    """A stage folder: done and unchanged is skipped, unfinished is resumed, anything else is an error.

    Use `Stage.open`; the manifest is written last and atomically by `finish`. A command that is refused halfway
    (a `MechprobeError`) leaves no folder where it had kept nothing.
    """

    folder: Path
    name: str
    identity: dict[str, Any]
    done: bool = False
    manifest: dict[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def _of(
        cls,
        folder: Path | str,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Path | str] | None,
        models: Mapping[str, str] | None,
    ) -> "Stage":
        identity = {
            "stage": name,
            "config": json.loads(dump_json(config)),
            "inputs": {key: input_hash(path) for key, path in (inputs or {}).items()},
            "models": dict(models or {}),
        }
        return cls(Path(folder), name, identity)

    @classmethod
    def check(
        cls,
        folder: Path | str,
        *,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Path | str] | None = None,
        models: Mapping[str, str] | None = None,
        force: bool = False,
        remake: Remake = False,
    ) -> None:
        """Raise what `open` would raise, and write nothing."""
        cls._of(folder, name, config, inputs, models)._look(force, remake)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path | str,
        *,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Path | str] | None = None,
        models: Mapping[str, str] | None = None,
        force: bool = False,
        remake: Remake = False,
        beside_others: bool = False,
    ) -> Iterator["Stage"]:
        """Enter a stage.

        Args:
            folder: Where the stage writes.
            name: Name of the stage, for example ``cache``.
            config: Resolved settings; together with the inputs they decide whether the folder is the same work.
            inputs: Name to file or finished stage folder that this stage reads.
            models: Name to fingerprint of every model it reads.
            force: Empty a folder of ours and begin again.
            remake: Do so where the work differs, instead of refusing; for views that are cheap to draw again.
                ``"refused"``: only where the command that began it was refused for what it was given (an edit that gives
                NaN). What that one kept is of no use to a corrected command; under the same settings it goes on.
            beside_others: Other processes may be writing the same work: leave their half-written files alone.

        Yields:
            The stage; ``stage.done`` says that there is nothing to do.

        Raises:
            ArtifactError: The folder holds other work, is not ours, or cannot be written.
        """
        stage = cls._of(folder, name, config, inputs, models)
        stage._enter(force, remake)
        if not stage.done and not beside_others:
            for left in stage.folder.rglob(".*.partial"):
                left.unlink()  # what a killed process was writing
        try:
            yield stage
        except MechprobeError as error:
            if not stage.done and not beside_others:
                stage._note_refusal(error)
            raise

    def _enter(self, force: bool, remake: Remake) -> None:
        state = self._look(force, remake)
        if state == "done":
            self.done = True
            return
        if state == "anew":
            shutil.rmtree(self.folder)
        write_json(self.folder / UNFINISHED, self.identity)

    def _look(self, force: bool, remake: Remake) -> Literal["done", "on", "anew"]:
        """Whether the work is done, to be gone on with, or to be begun in an emptied folder; writes nothing."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ArtifactError(f"{self.folder} is a file; give another --out.")
        finished = (self.folder / MANIFEST).is_file()
        begun = finished or (self.folder / UNFINISHED).is_file()
        if self.folder.is_dir() and any(self.folder.iterdir()) and not begun:
            raise ArtifactError(f"{self.folder} is not empty and not a mechprobe stage; give another --out.")
        if not begun:
            return "on"
        found = read_json(self.folder / (MANIFEST if finished else UNFINISHED))
        self._check_kind(found)
        changes = self._changes(found)
        if remake == "refused":
            remake = not finished and _REFUSED in found
        if force or (remake and changes):
            return "anew"
        if changes:
            self._refuse(changes, finished)
        if not finished:
            return "on"
        self.manifest = read_manifest(self.folder)
        check_outputs(self.folder, self.manifest)
        return "done"

    def _note_refusal(self, error: MechprobeError) -> None:
        """Leave no folder where nothing was kept; else say in it whether what was given is at fault."""
        with suppress(OSError, ArtifactError):  # a full disk, which the error itself may be about
            if all(path.name == UNFINISHED for path in self.folder.iterdir()):
                (self.folder / UNFINISHED).unlink()
                self.folder.rmdir()
            elif isinstance(error, _BAD_INPUT):
                write_json(self.folder / UNFINISHED, {**self.identity, _REFUSED: str(error)})

    def _check_kind(self, found: Any) -> None:
        """Even --force never empties the folder of another stage."""
        stage = found.get("stage") if isinstance(found, dict) else None
        if stage != self.name:
            raise ArtifactError(f"{self.folder} holds the stage '{stage}', not '{self.name}'; give another --out.")

    def _changes(self, found: Any) -> list[str]:
        old = {key: found.get(key) for key in self.identity} if isinstance(found, dict) else {}
        return _differences(old, self.identity)

    def _refuse(self, changes: Sequence[str], finished: bool) -> None:
        shown = "; ".join(changes[:4]) + ("; ..." if len(changes) > 4 else "")
        state = "a finished" if finished else "an unfinished"
        raise ArtifactError(
            f"{self.folder} holds {state} stage made with other settings ({shown}); "
            "pass --force to make it again, or give another --out."
        )

    def finish(
        self,
        *,
        outputs: Sequence[str],
        counts: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Hash ``outputs`` (paths relative to the folder) and write the manifest, the last file of the stage."""
        manifest = {
            **self.identity,
            "schema_version": SCHEMA_VERSION,
            "seed": seed,
            "counts": dict(counts or {}),
            "results": dict(results or {}),
            "outputs": {name: sha256_file(self.folder / name) for name in sorted(outputs)},
            "seconds": round(time.monotonic() - self.started, 3),
            "environment": environment(),
        }
        manifest["digest"] = manifest_digest(manifest)
        write_json(self.folder / MANIFEST, manifest)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        self.manifest = manifest
        self.done = True
        return manifest
