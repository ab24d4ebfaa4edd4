"""What a result was computed with: versions of Python and the packages, the platform, and the commit of the code."""

import importlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mechprobe.errors import DependencyError, is_out_of_memory

_PACKAGES = (
    "mechprobe", "torch", "transformers", "transformer-lens", "sae-lens", "numpy", "h5py", "trl", "peft", "lm-eval", "math-verify",
)  # fmt: skip

_PROJECTS = {"sklearn": "scikit-learn"}
"""Modules whose distribution has another name."""


def require(package: str, user: str) -> Any:
    """Import a package that only a part of mechprobe needs.

    Args:
        package: Name of the module. That of the distribution is its first part with ``-`` in place of ``_``, or in `_PROJECTS`.
        user: The part that needs it, for the message.

    Raises:
        DependencyError: The package is missing, or a package that it needs is.
        ImportError: Memory ran out.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if is_out_of_memory(error):  # an installed library that could not be mapped
            raise
        top = package.partition(".")[0]
        name = _PROJECTS.get(top, top.replace("_", "-"))
        because = "" if getattr(error, "name", None) == top else f" ({error})"
        raise DependencyError(
            f"{user} needs the package {name}, which cannot be imported{because}; run `pip install {name}`."
        ) from None


@cache
def environment() -> dict[str, Any]:
    """Versions of Python, the platform and the packages, and the git commit of the code, for a manifest."""
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
    """Commit of the checkout that the code runs from; an installed package has none."""
    repository = Path(__file__).resolve().parents[1]
    if not (repository / ".git").exists():
        return None
    try:
        commit = _git(repository, "rev-parse", "HEAD")
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
