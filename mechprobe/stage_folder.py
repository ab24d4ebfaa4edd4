"""Stage folders: each stage writes one folder whose manifest records its settings, inputs and output hashes.

A stage writes ``unfinished.json`` first and ``manifest.json`` last, so that a folder is either finished, with hashes of
everything in it, or known to be unfinished.
"""

import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mechprobe.environment import environment
from mechprobe.errors import BAD_INPUT, ArtifactError, MechprobeError
from mechprobe.files import (
    dump_json,
    empty_folder,
    nearest_folder,
    read_json,
    remove_partial_files,
    sha256_bytes,
    sha256_file,
    write_json,
)
from mechprobe.locks import sole_writer
from mechprobe.progress import activity, stage as running
from mechprobe.ranks import sharing

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_OTHER_CONTENT = "other content"
SCHEMA_VERSION = 1
Remake = bool | Literal["refused"]
"""When `Stage.open` empties a folder that holds other work, see there."""
_CHANGE_NOTHING = ("batch_size", "ce_batch")
"""Settings that change no result. Earlier versions recorded them; where a stage leaves them out, they are not compared."""
_LOCK_THEMSELVES = ("cache",)
"""Stages that lock their folder on their own, because several processes may write parts of it."""
_REFUSED = "refused"
"""Key of ``unfinished.json`` with the error that ended the command."""


def input_hash(path: Path | str) -> str:
    """Hash of an input: sha256 of a file, or of the settings, inputs and output hashes of a finished stage folder.

    Raises:
        ArtifactError: The input is missing, or the stage folder is unfinished or was changed.
    """
    path = Path(path)
    if path.is_dir():
        manifest = read_manifest(path)
        check_outputs(path, manifest)
        return recorded_hash(manifest)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that writes it first.")
    return sha256_file(path)


def recorded_hash(manifest: Mapping[str, Any]) -> str:
    """The hash of a stage as its manifest records it, without a look at its files."""
    return sha256_bytes(dump_json([manifest["config"], manifest["inputs"], manifest["outputs"]]).encode())


def check_outputs(folder: Path, manifest: Mapping[str, Any], kinds: Collection[str] | None = None) -> None:
    """Raise `ArtifactError` if an output of a finished stage is missing or was changed; ``kinds`` limits it to some endings."""
    checked = [name for name in manifest["outputs"] if kinds is None or Path(name).suffix in kinds]
    for name in checked:
        path, digest = folder / name, manifest["outputs"][name]
        if not path.is_file():
            raise ArtifactError(f"{path} is missing although {folder} is finished; run the stage again with --force.")
        if sha256_file(path) != digest:
            raise ArtifactError(f"{path} has changed since its stage wrote it; run the stage again with --force.")


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the manifest of a finished stage folder.

    Raises:
        ArtifactError: The folder is missing, is not a finished stage folder, or its manifest is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; run the stage that writes it first.")
    if not (folder / MANIFEST).is_file():
        state = "an unfinished stage" if (folder / UNFINISHED).is_file() else "not a stage folder"
        raise ArtifactError(f"{folder} is {state} (it has no {MANIFEST}); complete the stage that writes it.")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not {"stage", "config", "inputs", "outputs"} <= manifest.keys():
        raise ArtifactError(f"{folder / MANIFEST} is not a mechprobe manifest; run the stage again with --force.")
    return manifest


def require_stage(folder: Path | str, name: str) -> dict[str, Any]:
    """The manifest of a finished folder of the stage ``name``; `ArtifactError` if it is another stage's or not finished."""
    manifest = read_manifest(folder)
    if manifest["stage"] != name:
        article = "an" if name[0] in "aeiou" else "a"
        raise ArtifactError(f"{folder} is not {article} {name} stage; give the folder of `mechprobe {name}`.")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest without its key ``digest``, where this value is kept."""
    return sha256_bytes(dump_json({key: value for key, value in manifest.items() if key != "digest"}).encode())


def require_creatable(folder: Path | str) -> None:
    """Check that a folder exists and can be written, or that it could be created; create nothing.

    Raises:
        ArtifactError: The nearest existing parent is a file or is not writable, or the name is not allowed.
    """
    place = nearest_folder(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(f"{folder} cannot be written because {place} is not writable; give another --out.")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Describe every leaf in which two JSON values differ, as 'name: old value, new value'."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    if old == new:
        return []
    if _is_hash(old) and _is_hash(new) and not prefix.startswith("models."):  # users know models by fingerprint
        return [f"{prefix}: {_OTHER_CONTENT}"]
    return [f"{prefix}: {_short(old)} in the folder, {_short(new)} now"]


def _readable(differences: list[str]) -> list[str]:
    """The differences without hashes of settings, which only repeat other settings, unless there are no others."""
    named = [line for line in differences if not (line.startswith("config.") and line.endswith(_OTHER_CONTENT))]
    return named or differences


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class Stage:
    """A stage folder. Finished work is reused, unfinished work is resumed, and other work is never overwritten.

    Enter a stage with `Stage.open`. `finish` writes the manifest, atomically and last. If a command ends with a
    `MechprobeError` before it has kept anything, it leaves no folder.

    Attributes:
        identity: Stage, settings, hashes of the inputs and fingerprints of the models; work with the same identity is the
            same work.
        done: Whether the folder holds the finished work.
        manifest: The manifest of finished work.
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
        inputs: Mapping[str, Path | str] | None = None,
        models: Mapping[str, str] | None = None,
    ) -> "Stage":
        identity = {
            "stage": name,
            "config": json.loads(dump_json(config)),
            "inputs": {key: input_hash(path) for key, path in (inputs or {}).items()},
            "models": dict(models or {}),
        }
        return cls(Path(folder), name, identity)

    @classmethod
    def check(cls, folder: Path | str, *, force: bool = False, remake: Remake = False, **work: Any) -> None:
        """Raise what `open` would raise, and write nothing; ``work`` is its name, config, inputs and models."""
        if cls._of(folder, **work)._look(force, remake) != "done":
            require_creatable(folder)

    @classmethod
    @contextmanager
    def open(  # noqa: PLR0913 - all but the folder are keyword options
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
        one_folder: bool = False,
    ) -> Iterator["Stage"]:
        """Enter a stage.

        Args:
            folder: Folder that the stage writes.
            name: Name of the stage, for example ``cache``.
            config: Resolved settings. Settings, inputs and models decide whether a folder holds the same work.
            inputs: Name to file or finished stage folder that this stage reads.
            models: Name to fingerprint of every model that this stage reads.
            force: Empty the folder of an earlier run of this stage and start again.
            remake: Also start again if the folder holds other work, instead of raising an error: for views that are cheap to make.
                ``"refused"`` does so only if the earlier command ended because of its input, such as an edit that gives NaN.
            beside_others: Other processes may be writing the same work, so their temporary files are kept.
            one_folder: The processes that divide the work write into one folder together, and copy nothing.

        Yields:
            The stage. If ``stage.done``, there is nothing to do.

        Raises:
            ArtifactError: The folder holds other work, was not made by this stage, or cannot be written.
        """
        ranks = sharing()
        with running(name), ExitStack() as writing:
            with activity("checking the inputs"):
                stage = cls._of(folder, name, config, inputs, models)
                if ranks.is_first:
                    stage._begin(force, remake, beside_others, writing)
                stage.done, stage.manifest = ranks.gather((stage.done, stage.manifest))[0]
            try:
                with ranks.own_copy(stage.folder, needed=not (stage.done or one_folder)) as stage.folder:
                    yield stage
                    ranks.wait()  # now the first process has finished the folder, which all read
            except MechprobeError as error:
                if not stage.done and not beside_others and ranks.is_first:
                    stage._note_refusal(error)
                raise

    def _begin(self, force: bool, remake: Remake, beside_others: bool, writing: ExitStack) -> None:
        """Look what the folder holds, empty it where it is made again, and mark it as unfinished unless the work is done.

        The folder is locked until ``writing`` closes, unless others may write there.
        """
        state = self._look(force, remake)
        if state != "done" and not beside_others and self.name not in _LOCK_THEMSELVES:
            self.folder.mkdir(parents=True, exist_ok=True)
            writing.enter_context(sole_writer(self.folder, error=ArtifactError))
            state = self._look(force, remake)  # another process may have finished the stage since
        self.done = state == "done"
        if state == "restart":
            empty_folder(self.folder)  # it stays, because it is locked
        if not self.done:
            write_json(self.folder / UNFINISHED, self.identity)
            if not beside_others:
                remove_partial_files(self.folder)

    def _look(self, force: bool, remake: Remake) -> Literal["done", "continue", "restart"]:
        """Decide whether the work is done, continues in the folder, or restarts in an emptied folder; write nothing."""
        nearest_folder(self.folder)
        finished = (self.folder / MANIFEST).is_file()
        begun = finished or (self.folder / UNFINISHED).is_file()
        if self.folder.is_dir() and any(self.folder.iterdir()) and not begun:
            raise ArtifactError(f"{self.folder} is not empty and was not written by mechprobe; give another --out.")
        if not begun:
            return "continue"
        found = read_json(self.folder / (MANIFEST if finished else UNFINISHED))
        kind = found.get("stage") if isinstance(found, dict) else None
        if kind != self.name:  # not even --force may empty the folder of another stage
            raise ArtifactError(f"{self.folder} holds the stage '{kind}', not '{self.name}'; give another --out.")
        old = {key: found.get(key) for key in self.identity}
        dropped = [key for key in _CHANGE_NOTHING if key not in self.identity["config"]]
        if isinstance(old["config"], dict):
            old["config"] = {key: value for key, value in old["config"].items() if key not in dropped}
        changes = _readable(_differences(old, self.identity))
        again = remake is True or (remake == "refused" and not finished and _REFUSED in found)
        if force or (again and changes):
            return "restart"
        if changes:
            self._refuse(changes, finished)
        if not finished:
            return "continue"
        self.manifest = read_manifest(self.folder)
        check_outputs(self.folder, self.manifest)
        return "done"

    def _note_refusal(self, error: MechprobeError) -> None:
        """Remove the folder if nothing was kept; otherwise record an error that the input caused."""
        with suppress(OSError, ArtifactError):  # the disk may be full, which may be the error itself
            if all(path.name == UNFINISHED for path in self.folder.iterdir()):
                (self.folder / UNFINISHED).unlink()
                self.folder.rmdir()
            elif isinstance(error, BAD_INPUT):
                write_json(self.folder / UNFINISHED, {**self.identity, _REFUSED: str(error)})

    def _refuse(self, changes: Sequence[str], finished: bool) -> None:
        shown = "; ".join(changes[:4]) + ("; ..." if len(changes) > 4 else "")
        raise ArtifactError(
            f"{self.folder} holds {'a finished' if finished else 'an unfinished'} stage made with other settings ({shown}); "
            "run it again with --force, or give another --out."
        )

    def finish(
        self,
        *,
        outputs: Sequence[str],
        counts: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Hash the outputs and write the manifest, the last file of the stage.

        Args:
            outputs: Paths of the written files, relative to the folder.
            counts: Numbers of what was processed.
            results: What the stage found, for readers of the manifest.
            seed: Seed of the stage.

        Returns:
            The manifest.
        """
        with activity("hashing the results"):
            hashes = {name: sha256_file(self.folder / name) for name in sorted(outputs)}
        manifest = {
            **self.identity,
            "schema_version": SCHEMA_VERSION,
            "seed": seed,
            "counts": dict(counts or {}),
            "results": dict(results or {}),
            "outputs": hashes,
            "seconds": round(time.monotonic() - self.started, 3),
            "environment": environment(),
        }
        manifest["digest"] = manifest_digest(manifest)
        write_json(self.folder / MANIFEST, manifest)
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        self.manifest, self.done = manifest, True
        return manifest
