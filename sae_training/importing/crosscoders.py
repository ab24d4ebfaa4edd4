"""Import of all known formats of published crosscoders."""

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
    """Functions that recognize and read a format."""

    matches: Callable[[PublishedFile], bool]
    read: Callable[[PublishedFile], PublishedCrosscoder]


FORMATS: dict[str, Format] = {
    module.NAME: Format(module.matches, module.read)
    for module in (crosscoder_learning, heterogeneous, llamascopium, replication)
}


def read_published(path: Path | str, format: str | None = None) -> PublishedCrosscoder:
    """Read the formula of a published crosscoder.

    Args:
        path: A weights file (``.pt``, ``.safetensors``), or a folder with one, with its JSON settings beside it.
        format: One of `FORMATS`; None recognizes it by the names of the tensors.

    Raises:
        SaeTrainingError: The file cannot be read, its format is unknown, or it cannot be represented exactly.
    """
    if format is not None and format not in FORMATS:
        nearest = nearest_name(format, FORMATS)
        fix = f"did you mean {nearest!r}?" if nearest else f"the formats are {', '.join(FORMATS)}."
        raise SaeTrainingError(f"crosscoder format {format!r} is unknown; {fix}")
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
    """Import a published crosscoder with equal latents and reconstructions (docs/interop.md describes the precision).

    Args:
        path: A weights file (``.pt``, ``.safetensors``), or a folder with one.
        format: ``crosscoder_learning``, ``opd``, ``llamascopium`` or ``replication``; None recognizes it.
        names: Names of the models, in the order of the file; None means ``model_0``, ``model_1``...
        scale: Divisor of each model's raw activations, which ``replication`` needs because its files lack it.

    Raises:
        SaeTrainingError: The file cannot be read, its format is unknown, or it cannot be represented exactly.
    """
    return read_published(path, format).to_crosscoder(names, scale)


def _what_else(file: PublishedFile) -> str:
    """Describe a file that is not a crosscoder of a known format, and how to open it."""
    encoder = file.tensors.get("W_enc")
    if encoder is not None and encoder.ndim == 2 and file.settings.get("format") == "sae_training.crosscoder":
        return "is a crosscoder of this package; open its folder with Crosscoder.load."
    if encoder is not None and encoder.ndim == 2:
        return "is an SAE of one model, not a crosscoder; read it with import_sae."
    names = sorted(file.tensors)
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"has tensors {shown}, which match none of the formats {', '.join(FORMATS)}."
