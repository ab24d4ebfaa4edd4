"""Models of the Hugging Face hub: which files of a repository are downloaded, and why a download fails."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mechprobe.errors import ModelError

_TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_SAFETENSORS = ("model*.safetensors", "adapter_model*.safetensors")
_BIN = ("pytorch_model*.bin", "adapter_model*.bin")


def download(name: str, revision: str | None, *, role: str, trust_remote_code: bool) -> Path:
    """Download a model, or find it in the local cache of the hub.

    ``.bin`` weights are taken only where there are no safetensors, and Python files only with ``trust_remote_code``.

    Returns:
        The snapshot, a folder that is named by its commit.

    Raises:
        ModelError: The hub does not provide the model; the message says why.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        try:
            info = HfApi().model_info(name, revision=revision)
            files, commit = wanted_files([file.rfilename for file in info.siblings or ()], trust_remote_code), info.sha
        except OfflineModeIsEnabled:
            files, commit = None, revision  # the cache has what an earlier download took
        return Path(snapshot_download(name, revision=commit or revision, allow_patterns=files))
    except Exception as error:  # noqa: BLE001 - the hub client raises many unrelated types
        at = f"{name}@{revision}" if revision else name
        raise ModelError(f"Model {role}: {at} is not a local folder, {_reason(error, name)}.") from None


def wanted_files(names: Sequence[str], trust_remote_code: bool) -> list[str]:
    """The files of a repository that a model needs."""
    top = [name for name in names if "/" not in name]
    safe = [name for name in top if _is_any(name, _SAFETENSORS)]
    weights = safe or [name for name in top if _is_any(name, _BIN)]
    code = [name for name in names if name.endswith(".py")] if trust_remote_code else []
    texts = [name for name in names if name.endswith(".jinja") or ("/" not in name and _is_any(name, _TEXTS))]
    return [*texts, *weights, *code]


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _reason(error: Any, name: str) -> str:
    """Why the hub did not provide a model, and the mend, as the end of a sentence."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "and the hub gives it only to who accepted its terms; accept them on its page and run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "and the hub has the model but not this revision; check the branch, tag or commit"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return "and the hub has no such model; check the name, or run `hf auth login` if it is private"
    download_first = f"download it with `hf download {name}` where there is a network, or give a local folder"
    if constants.HF_HUB_OFFLINE:
        return f"it is not in the cache, and the hub is switched off by HF_HUB_OFFLINE; unset that, or {download_first}"
    return f"and the hub did not provide it ({type(error).__name__}); check the connection, or {download_first}"
