"""Proof that a store is what was written: every file is hashed again and compared with its record."""

from dataclasses import dataclass
from pathlib import Path

from mechprobe.activations.shards import INDEX, TOKENS
from mechprobe.artifacts import read_json, read_manifest, sha256_file
from mechprobe.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a store."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify_store(folder: Path) -> list[Problem]:
    """Hash every file of a finished store.

    The manifest holds the hashes of the token stream and of each model's index, an index those of its shards.

    Raises:
        ArtifactError: The folder is no finished store.
    """
    manifest = read_manifest(folder)
    problems = [
        problem for name, digest in manifest["outputs"].items() if (problem := _check(folder, name, digest)) is not None
    ]
    expected = {TOKENS, *(f"{name}/{INDEX}" for name in manifest["models"])}
    if set(manifest["outputs"]) != expected:
        problems.append(Problem("manifest.json", f"lists {sorted(manifest['outputs'])} instead of {sorted(expected)}"))
    for name in manifest["models"]:
        try:
            shards = [(shard["file"], shard["sha256"]) for shard in read_json(folder / name / INDEX)["shards"]]
        except (ArtifactError, KeyError, TypeError) as error:
            problems.append(Problem(f"{name}/{INDEX}", f"cannot be read ({error})"))
            continue
        problems += [
            problem for file, digest in shards if (problem := _check(folder, f"{name}/{file}", digest)) is not None
        ]
    return problems


def _check(folder: Path, name: str, digest: str) -> Problem | None:
    path = folder / name
    if not path.is_file():
        return Problem(name, "is missing")
    found = sha256_file(path)
    return None if found == digest else Problem(name, f"has sha256 {found}, {digest} was written")
