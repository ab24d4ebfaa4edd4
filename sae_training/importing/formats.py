"""Import of published crosscoders in all known formats; each private reader reads the formula of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.frozen import nearest_name
from sae_training.importing.conversion import PublishedCrosscoder
from sae_training.importing.files import PublishedFile, read_published_file
from sae_training.weights import source_norms

_CODE_NORMALIZATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_BACK_EPSILON = 1e-8
"""Added by crosscoder_learning to the factor that divides the reconstruction."""


@dataclass(frozen=True)
class Format:
    """How to recognize and read a format.

    Attributes:
        names: Tensors of every file in the format.
        read: Reads a file; raises `SaeTrainingError` if a tensor does not fit, or the formula cannot be represented.
        stacked: Whether the first of these tensors has an axis over the models.
    """

    names: tuple[str, ...]
    read: Callable[[PublishedFile], PublishedCrosscoder]
    stacked: bool = True

    def matches(self, file: PublishedFile) -> bool:
        """Whether a file has the tensors of this format."""
        return file.has(*self.names) and (not self.stacked or file.tensors[self.names[0]].ndim == 3)


def _read_crosscoder_learning(file: PublishedFile) -> PublishedCrosscoder:
    """crosscoder_learning (dictionary_learning of science-of-finetuning): CrossCoder and BatchTopKCrossCoder.

    State dict: ``encoder.weight`` [M, d, F], ``encoder.bias`` [F], ``decoder.weight`` [M, F, d], ``decoder.bias`` [M,
    d] and ``code_normalization_id``; since 2025 also ``activation_mean`` and ``activation_std`` [M, d] (NaN if not
    normalized) and ``activation_global_scale`` [M]. The BatchTopK class adds ``k`` and ``threshold``. Files are
    ``.pt``, or ``model.safetensors`` with ``config.json``. Source of the formula: dictionary.py at commit b2363ed.
    """
    encoder = file.tensor("encoder.weight", (None, None, None))
    n_models, width, d_sae = encoder.shape
    decoder = file.tensor("decoder.weight", (None, d_sae, width))
    if len(decoder) != n_models:
        raise SaeTrainingError(
            f"{file.path} encodes {n_models} activations and decodes {len(decoder)}, but a crosscoder needs equal numbers; "
            "it cannot be imported."
        )
    b_dec = file.tensor("decoder.bias", (n_models, width))
    shift, factor = _normalizer(file, n_models, width)
    has_threshold = "threshold" in file.tensors
    parts = tuple(decoder)
    return PublishedCrosscoder(
        format="crosscoder_learning",
        path=file.path,
        encoder=tuple(encoder),
        decoder=parts,
        b_enc=file.tensor("encoder.bias", (d_sae,)),
        b_dec=tuple(b_dec),
        shift=tuple(torch.zeros(n_models, width).double() if shift is None else shift),
        divisor=tuple((1 / factor).tolist()),
        multiplier=tuple((1 / factor).tolist() if shift is None else (1 / (factor + _BACK_EPSILON)).tolist()),
        has_scale=shift is not None,
        threshold=_threshold(file) if has_threshold else None,
        norm=_selection_norm(file, parts) if has_threshold else None,
        k=int(file.number("k") or 0) or None,
        dtype=file.dtype,
    )


def _read_opd(file: PublishedFile) -> PublishedCrosscoder:
    """understanding-opd-crosscoders: HeterogeneousCrossCoder and its BatchTopK class, for models of different widths.

    State dict: ``encoder.projections.<m>.weight`` [F, d_m], ``encoder.bias`` [F], ``decoder.projections.<m>.weight``
    [d_m, F] and ``.bias`` [d_m], ``normalizer.mean_<m>`` and ``std_<m>`` [d_m] (NaN if not normalized), ``scale_<m>``,
    ``activation_dims_tensor`` [M] and ``code_normalization_id``. The BatchTopK class adds ``k`` and ``threshold``.
    Files are models, or training checkpoints with ``model_state_dict``. Source of the formula: dictionary.py at commit
    4a61088.
    """
    n_models = sum(f"encoder.projections.{index}.weight" in file.tensors for index in range(len(file.tensors)))
    (d_sae,) = file.tensor("encoder.bias", (None,)).shape
    encoder = tuple(file.tensor(f"encoder.projections.{m}.weight", (d_sae, None)).T for m in range(n_models))
    widths = [part.shape[0] for part in encoder]
    decoder = tuple(file.tensor(f"decoder.projections.{m}.weight", (widths[m], d_sae)).T for m in range(n_models))
    means = [file.tensors.get(f"normalizer.mean_{m}") for m in range(n_models)]
    normalized = all(mean is not None and not bool(torch.isnan(mean).any()) for mean in means)
    factor = [1.0] * n_models
    shift = tuple(torch.zeros(width).double() for width in widths)
    if normalized:
        factor = [float(file.tensor(f"normalizer.scale_{m}", ())) for m in range(n_models)]
        shift = tuple(file.tensor(f"normalizer.mean_{m}", (widths[m],)) for m in range(n_models))
        if min(factor) <= 0:
            raise SaeTrainingError(f"{file.path}: the scales {factor} are not positive; the file is damaged.")
    has_threshold = "threshold" in file.tensors
    return PublishedCrosscoder(
        format="opd",
        path=file.path,
        encoder=encoder,
        decoder=decoder,
        b_enc=file.tensor("encoder.bias", (d_sae,)),
        b_dec=tuple(file.tensor(f"decoder.projections.{m}.bias", (widths[m],)) for m in range(n_models)),
        shift=shift,
        divisor=tuple(1 / value for value in factor),
        multiplier=tuple(1 / (value + _BACK_EPSILON) if normalized else 1.0 for value in factor),
        has_scale=normalized,
        threshold=file.number("threshold"),
        norm=_selection_norm(file, decoder) if has_threshold else None,
        k=int(file.number("k") or 0) or None,
        dtype=file.dtype,
    )


def _code_normalization(file: PublishedFile) -> str:
    """Name of the decoder norm that weights the selection of latents."""
    number = file.number("code_normalization_id")
    name = _CODE_NORMALIZATIONS.get(int(number), "") if number is not None else file.settings.get("code_normalization")
    if name is None:
        return "CROSSCODER"  # the library's only norm before it had this setting
    if str(name).upper() not in _CODE_NORMALIZATIONS.values():
        raise SaeTrainingError(
            f"{file.path}: code_normalization {number if number is not None else name!r} is unknown; "
            f"known are {', '.join(_CODE_NORMALIZATIONS.values())}."
        )
    return str(name).upper()


def _selection_norm(file: PublishedFile, decoder: tuple[Tensor, ...]) -> Tensor:
    """The weights norm_k of the code normalization, ``[d_sae]``."""
    norms = source_norms(decoder)
    together, summed = norms.square().sum(dim=0).sqrt(), norms.sum(dim=0)
    match _code_normalization(file):
        case "CROSSCODER":
            return summed
        case "SAE":
            return together
        case "NONE":
            return torch.ones_like(summed)
        case "MIXED":
            sae, cc = (file.settings.get(f"code_normalization_alpha_{name}") for name in ("sae", "cc"))
            if not isinstance(sae, int | float) or not isinstance(cc, int | float):
                raise SaeTrainingError(
                    f"{file.path}: code normalization MIXED needs code_normalization_alpha_sae and ..._cc, which are only in "
                    "config.json; put the config.json of the release beside the file."
                )
            return sae * together + cc * summed
        case _:
            raise SaeTrainingError(
                f"{file.path}: with code normalization DECOUPLED a latent can be active in only some models, but a "
                "crosscoder here has one activation per latent; this file cannot be imported exactly."
            )


def _threshold(file: PublishedFile) -> float:
    if file.tensors["threshold"].ndim:
        _selection_norm(file, tuple(file.tensors["decoder.weight"].double()))  # raises the error about DECOUPLED
    return float(file.tensor("threshold", ()))


def _normalizer(file: PublishedFile, n_models: int, width: int) -> tuple[Tensor | None, Tensor]:
    """Mean [M, d] and factor [M] of (x - mean) * factor; None and ones if the file has no statistics."""
    ones = torch.ones(n_models).double()
    names = ("activation_mean", "activation_std")
    if not file.has(*names) or any(bool(torch.isnan(file.tensors[name]).any()) for name in names):
        return None, ones
    factor = file.tensor("activation_global_scale", (n_models,))
    if not bool((factor > 0).all()):
        raise SaeTrainingError(
            f"{file.path}: activation_global_scale {factor.tolist()} is not positive; the file is damaged."
        )
    return file.tensor("activation_mean", (n_models, width)), factor


def _read_llamascopium(file: PublishedFile) -> PublishedCrosscoder:
    """Llamascopium (OpenMOSS Language-Model-SAEs) crosscoders over "heads": hook points or checkpoints.

    ``sae_weights.safetensors`` (or ``.pt`` with the tensors under ``sae``) and ``config.json``: ``W_E`` [M, d, F],
    ``b_E`` [M, F] (summed over heads), ``W_D`` [M, F, d], ``b_D`` [M, d] and ``dataset_average_activation_norm.<hook
    point>``. The activation function acts on h n_m, where n_m is the decoder norm of one head, so only ``relu`` gives
    all heads the same latents. Source of the formula: models/crosscoder.py and sparse_dictionary.py at commit 95281ac.
    """
    encoder = file.tensor("W_E", (None, None, None))
    n_heads, width, d_sae = encoder.shape
    hooks = tuple(str(hook) for hook in file.settings.get("hook_points", ()))
    if len(hooks) != n_heads:
        raise SaeTrainingError(
            f"{file.path} has {n_heads} heads, but its config.json names {len(hooks)} hook_points; put the config.json of "
            "the release beside it."
        )
    act_fn = str(file.settings.get("act_fn", "relu")).lower()
    if act_fn != "relu":
        raise SaeTrainingError(
            f"{file.path}: with act_fn {act_fn!r} a latent can be active in only some heads, but a crosscoder here has one "
            "activation per latent; only relu can be imported."
        )
    divisor = _divisors(file, hooks, width)
    return PublishedCrosscoder(
        format="llamascopium",
        path=file.path,
        encoder=tuple(encoder),
        decoder=tuple(file.tensor("W_D", (n_heads, d_sae, width))),
        b_enc=file.tensor("b_E", (n_heads, d_sae)).sum(dim=0),
        b_dec=tuple(file.tensor("b_D", (n_heads, width))),
        shift=tuple(torch.zeros(n_heads, width).double()),
        divisor=divisor,
        multiplier=divisor,
        dtype=file.dtype,
        hint=hooks,
    )


def _divisors(file: PublishedFile, hooks: tuple[str, ...], width: int) -> tuple[float, ...]:
    """Average norm of each head over sqrt(d), or 1 if the scale is folded into the weights."""
    mode = file.settings.get("norm_activation")
    if mode == "inference":
        return (1.0,) * len(hooks)
    if mode != "dataset-wise":
        raise SaeTrainingError(
            f"{file.path}: norm_activation {mode!r} scales each token separately, which the latents do not determine; "
            "only 'dataset-wise' and 'inference' can be imported."
        )
    norms = [float(file.tensor(f"dataset_average_activation_norm.{hook}", ())) for hook in hooks]
    if min(norms) <= 0:
        raise SaeTrainingError(
            f"{file.path}: the average activation norms {norms} are not positive; the file is damaged."
        )
    return tuple(norm / width**0.5 for norm in norms)


def _read_replication(file: PublishedFile) -> PublishedCrosscoder:
    """neelnanda-io/Crosscoders and ckkissane/crosscoder-model-diff-replication: a ReLU crosscoder.

    State dict in ``<version>.pt`` with ``<version>_cfg.json`` (``cc_weights.pt`` with ``cfg.json`` in the release):
    ``W_enc`` [M, d, F], ``W_dec`` [F, M, d], ``b_enc`` [F], ``b_dec`` [M, d]. Both repositories scale the activations
    (one divides, one multiplies) by factors that are not in the files. Source of the formula: utils.py at commit
    3adc7eb, and crosscoder.py and buffer.py at commit e221e8d.
    """
    encoder = file.tensor("W_enc", (None, None, None))
    n_models, width, d_sae = encoder.shape
    return PublishedCrosscoder(
        format="replication",
        path=file.path,
        encoder=tuple(encoder),
        decoder=file.tensor("W_dec", (d_sae, n_models, width)).unbind(dim=1),
        b_enc=file.tensor("b_enc", (d_sae,)),
        b_dec=tuple(file.tensor("b_dec", (n_models, width))),
        shift=tuple(torch.zeros(n_models, width).double()),
        divisor=(1.0,) * n_models,
        multiplier=(1.0,) * n_models,
        has_scale=False,
        needs_scale=True,
        dtype=file.dtype,
    )


FORMATS: dict[str, Format] = {
    "crosscoder_learning": Format(
        ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"), _read_crosscoder_learning
    ),
    "opd": Format(
        ("encoder.projections.0.weight", "encoder.bias", "decoder.projections.0.weight"), _read_opd, stacked=False
    ),
    "llamascopium": Format(("W_E", "b_E", "W_D", "b_D"), _read_llamascopium),
    "replication": Format(("W_enc", "W_dec", "b_enc", "b_dec"), _read_replication),
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
