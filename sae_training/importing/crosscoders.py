"""One entry for every published crosscoder format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.frozen import nearest_name
from sae_training.importing import crosscoder_learning, heterogeneous, llamascopium, replication
from sae_training.importing.files import PublishedFile, read_published_file
from sae_training.importing.published import PublishedCrosscoder


@dataclass(frozen=True)
class Format:
    """How a format is recognised and read."""

    matches: Callable[[PublishedFile], bool]
    read: Callable[[PublishedFile], PublishedCrosscoder]


FORMATS: dict[str, Format] = {
    module.NAME: Format(module.matches, module.read)
    for module in (crosscoder_learning, heterogeneous, llamascopium, replication)
}


def read_published(path: Path | str, format: str | None = None) -> PublishedCrosscoder:
    """The formula of a published crosscoder.

    Args:
        path: a weights file (``.pt``, ``.safetensors``), or a folder with one; JSON settings are taken from beside it.
        format: one of `FORMATS`; recognised by the names of the tensors when None.

    Raises:
        SaeTrainingError: the file cannot be read, is of no known format, or is not exactly a crosscoder of ours.
    """
    if format is not None and format not in FORMATS:
        nearest = nearest_name(format, FORMATS)
        mend = f"did you mean {nearest!r}?" if nearest else f"the formats are {', '.join(FORMATS)}."
        raise SaeTrainingError(f"crosscoder format {format!r} is unknown; {mend}")
    file = read_published_file(path)
    if format is not None:
        return FORMATS[format].read(file)
    for candidate in FORMATS.values():
        if candidate.matches(file):
            return candidate.read(file)
    raise SaeTrainingError(f"{file.path} {_what_else(file)}")


def import_crosscoder(
    path: Path | str,
    format: str | None = None,
    *,
    names: Sequence[str] | None = None,
    scale: Sequence[float | int] | None = None,
) -> Crosscoder:
    """A published crosscoder with equal features and reconstructions; `docs/interop.md` says what is exact.

    Args:
        path: a weights file (``.pt``, ``.safetensors``), or a folder with one.
        format: ``crosscoder_learning``, ``opd``, ``llamascopium`` or ``replication``; None recognises it.
        names: of the models, in the file's order; ``model_0``... when None.
        scale: divisor of each model's raw activations; needed for ``replication``, whose files do not hold it.

    Raises:
        SaeTrainingError: the file cannot be read, is of no known format, or cannot be represented exactly.
    """
    return read_published(path, format).to_crosscoder(names, scale)


def _what_else(file: PublishedFile) -> str:
    """What a file of no crosscoder format is, and what to do with it."""
    encoder = file.tensors.get("W_enc")
    if encoder is not None and encoder.ndim == 2 and file.settings.get("format") == "sae_training.crosscoder":
        return "is a crosscoder of this package; open its folder with Crosscoder.load."
    if encoder is not None and encoder.ndim == 2:
        return "is an SAE of one model, no crosscoder; read it with import_sae."
    names = sorted(file.tensors)
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"has tensors {shown}, which is none of the formats {', '.join(FORMATS)}."
