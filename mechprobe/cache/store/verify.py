"""Verification of a store: every file is hashed again and compared with its recorded hash."""

from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.store.shards import INDEX
from mechprobe.cache.store.token_file import TOKENS
from mechprobe.errors import ArtifactError
from mechprobe.files import dump_json, read_json, sha256_file
from mechprobe.progress import Advance, progress
from mechprobe.stage_folder import MANIFEST, manifest_digest, read_manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a store that changed or is missing."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify_store(folder: Path) -> list[Problem]:
    """Hash every file of a finished store.

    The manifest holds the hashes of the token stream and of every index; an index holds the hashes of its shards.

    Raises:
        ArtifactError: The folder is not a finished store.
    """
    manifest = read_manifest(folder)
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    if manifest.get("digest") != manifest_digest(manifest) or text != dump_json(manifest):
        return [Problem(MANIFEST, "was changed: it does not match its own digest")]
    if manifest["stage"] != "cache":
        raise ArtifactError(f"{folder} holds the stage '{manifest['stage']}', not a store; give another folder.")
    outputs = manifest["outputs"].items()
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with progress(n_bytes, "hashing", unit="bytes") as advance:
        checked = (_check(folder, name, digest, advance) for name, digest in outputs)
        problems = [problem for problem in checked if problem is not None]
        missing = {TOKENS, *(f"{name}/{INDEX}" for name in manifest["models"])} - set(manifest["outputs"])
        problems += [Problem(MANIFEST, f"does not list {name}") for name in sorted(missing)]
        for name in manifest["models"]:
            problems += _check_model(folder, name, advance)
    return problems


def _check_model(folder: Path, name: str, advance: Advance) -> list[Problem]:
    try:
        records = [(record["file"], record["sha256"], record) for record in read_json(folder / name / INDEX)["shards"]]
    except (ArtifactError, KeyError, TypeError) as error:
        return [Problem(f"{name}/{INDEX}", f"cannot be read ({error})")]
    problems = []
    for file, digest, record in records:
        listed = f"{name}/{file}.json"
        if (problem := _check(folder, f"{name}/{file}", digest, advance)) is not None:
            problems.append(problem)
        try:
            same = (folder / listed).read_text(encoding="utf-8") == dump_json(record)
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            problems.append(Problem(listed, "was changed"))
    return problems


def _check(folder: Path, name: str, digest: str, advance: Advance) -> Problem | None:
    path = folder / name
    if not path.is_file():
        return Problem(name, "is missing")
    found = sha256_file(path)
    advance(path.stat().st_size, file=name)
    return None if found == digest else Problem(name, f"has sha256 {found} instead of {digest}")
