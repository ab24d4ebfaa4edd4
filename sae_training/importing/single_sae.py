"""An SAE of one model for inference, to compare with a crosscoder, and its import from sae-lens folders.

The import does without sae-lens. It supports inference SAEs (standard, jumprelu, topk) and checkpoints of training SAEs
(the same, batchtopk and matryoshka_batchtopk). The weights absorb what sae-lens does at run time: b_enc absorbs
``apply_b_dec_to_input``, and encoder and decoder absorb ``rescale_acts_by_decoder_norm``. Source of the formula:
saes/*.py of sae-lens 6.54.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.importing.files import PublishedFile, read_json, read_published_file
from sae_training.reconstruction import ReconstructionSums, VarianceSums

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RELU, THRESHOLD, TOPK = ("standard",), ("jumprelu", "batchtopk", "matryoshka_batchtopk"), ("topk",)
_LEAST_NORM = 1e-8
"""Lower bound of the decoder norm in sae-lens."""


@dataclass(frozen=True)
class SaeMetrics:
    """Measures of one SAE over a stream of tokens, defined as in `sae_training.Metrics`.

    Attributes:
        fve: 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both sums over all tokens.
        l0: Mean number of active latents per token.
        dead_frac: Share of latents that are active on no token.
        density: ``[d_sae]``, share of tokens on which each latent is active.
        n_tokens: Number of tokens.
    """

    fve: float
    l0: float
    dead_frac: float
    density: Float[Tensor, " d_sae"]
    n_tokens: int


@dataclass(frozen=True)
class SingleSae:
    """An SAE over one model's raw activations.

    ``h = x W_enc + b_enc`` and ``x_hat = f W_dec + b_dec``. A latent activation is f = h where h > threshold and h > 0,
    or where h is among the k highest positive ones, and 0 elsewhere.

    Attributes:
        W_enc: Encoder ``[d_model d_sae]``.
        W_dec: Decoder ``[d_sae d_model]``.
        b_enc: Encoder bias ``[d_sae]``.
        b_dec: Decoder bias ``[d_model]``.
        threshold: Threshold ``[d_sae]`` on h; zeros for a ReLU.
        k: Latents per token for a topk SAE, else None.
        source: Folder that it was read from.
        metadata: Model, hook and training, as its file describes them.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    k: int | None = None
    source: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SingleSae":
        """Copy it to another device or dtype."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        return replace(self, **{name: getattr(self, name).to(device=device, dtype=dtype) for name in names})

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_sae"]:
        """Latent activations of raw activations; those of a row do not depend on the other rows."""
        if x.shape[1] != self.d_model:
            raise SaeTrainingError(
                f"activations have width {x.shape[1]}, but the SAE {self.source or ''} takes {self.d_model}; "
                "give activations of the model that it was trained on."
            )
        hidden_pre = torch.addmm(self.b_enc, x.to(self.W_enc.dtype), self.W_enc)
        if self.k is None:
            return torch.relu(hidden_pre) * (hidden_pre > self.threshold)
        kept = torch.topk(hidden_pre, self.k, dim=1, sorted=False)
        return torch.zeros_like(hidden_pre).scatter(1, kept.indices, torch.relu(kept.values))

    def decode(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_model"]:
        """Reconstructed raw activations."""
        return torch.addmm(self.b_dec, feature_acts, self.W_dec)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Tensor]) -> SaeMetrics:
        """Measure the SAE on raw activations ``[batch d_model]``.

        Raises:
            SaeTrainingError: The stream is empty, or its activations have another width.
        """
        sums, variance = ReconstructionSums(), VarianceSums([self.d_model])
        for batch in batches:
            x = batch.to(self.W_enc.device)
            feature_acts = self.encode(x)
            variance.update(x)
            sums.update(feature_acts, x.double() - self.decode(feature_acts))
        if sums.n_tokens == 0:
            raise SaeTrainingError("evaluate: the stream of activations is empty; give at least one batch.")
        fve = float(sums.fve(variance.compute()))
        return SaeMetrics(fve, sums.l0, sums.dead_frac, sums.density, sums.n_tokens)


def import_sae(folder: Path | str) -> SingleSae:
    """Import an SAE saved by sae-lens (``SAE.save_model``, ``save_inference_model``, or a training checkpoint).

    Raises:
        SaeTrainingError: The folder does not hold an SAE, its architecture is not supported, or its latents are not a
            fixed function of raw activations (as with layer_norm).
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise SaeTrainingError(
            f"{folder} does not hold an SAE of sae-lens ({CONFIG} and {WEIGHTS}); give the folder with both."
        )
    settings = read_json(folder / CONFIG)
    file = read_published_file(folder / WEIGHTS)
    architecture = _architecture(folder, settings)
    _refuse_unfolded(folder, settings, file)
    encoder = file.tensor("W_enc", (None, None))
    d_model, d_sae = encoder.shape
    decoder = file.tensor("W_dec", (d_sae, d_model))
    b_enc, b_dec = file.tensor("b_enc", (d_sae,)), file.tensor("b_dec", (d_model,))
    if settings.get("apply_b_dec_to_input", True):
        b_enc = b_enc - b_dec @ encoder
    if settings.get("rescale_acts_by_decoder_norm", False) and architecture not in RELU:
        norm = torch.linalg.vector_norm(decoder, dim=1)
        norm = norm.clamp(min=_LEAST_NORM) if architecture in THRESHOLD else norm
        encoder, b_enc = encoder * norm, b_enc * norm
        decoder = torch.where(norm[:, None] > 0, decoder / norm[:, None], 0.0)
    threshold = _threshold(file, architecture, d_sae)
    k = _k(folder, settings, d_sae) if architecture in TOPK else None
    tensors = (tensor.to(file.dtype) for tensor in (encoder, decoder, b_enc, b_dec, threshold))
    return SingleSae(*tensors, k=k, source=folder, metadata=_metadata(settings, architecture))


def _architecture(folder: Path, settings: dict[str, Any]) -> str:
    name = settings.get("architecture", "standard")
    activation = settings.get("activation_fn", settings.get("activation_fn_str", "relu"))
    if name == "standard" and activation == "topk":
        name = "topk"  # the notation of sae-lens before 6.0
    if name not in RELU + THRESHOLD + TOPK or (name == "standard" and activation != "relu"):
        shown = name if name != "standard" else f"standard with {activation}"
        raise SaeTrainingError(
            f"{folder}: architecture {shown!r} cannot be imported; {', '.join(RELU + THRESHOLD + TOPK)} can."
        )
    return name


def _refuse_unfolded(folder: Path, settings: dict[str, Any], file: PublishedFile) -> None:
    normalize = settings.get("normalize_activations") or "none"
    if normalize is True or normalize in ("expected_average_only_in", "covariance_whitening"):
        raise SaeTrainingError(
            f"{folder}: normalize_activations {normalize!r} is not yet folded into the weights, as sae-lens does at the end "
            "of training; let sae-lens finish or fold it, and save again."
        )
    if normalize != "none":
        raise SaeTrainingError(
            f"{folder}: normalize_activations {normalize!r} scales each token separately, so the latents do not determine "
            "the reconstruction; it cannot be imported."
        )
    if settings.get("reshape_activations", "none") != "none":
        raise SaeTrainingError(
            f"{folder}: an SAE of attention heads (hook_z) does not read a residual stream; it cannot be imported."
        )
    factor = file.tensors.get("scaling_factor", file.tensors.get("finetuning_scaling_factor"))
    if factor is not None and not torch.allclose(factor.float(), torch.ones_like(factor).float()):
        raise SaeTrainingError(f"{folder}: a fine-tuning scaling factor other than 1 cannot be imported.")


def _threshold(file: PublishedFile, architecture: str, d_sae: int) -> Tensor:
    if architecture not in THRESHOLD:
        return torch.zeros(d_sae, dtype=torch.float64)
    if architecture == "jumprelu":
        return file.tensor("threshold", (d_sae,))
    return file.tensor("topk_threshold", ()).expand(d_sae)


def _k(folder: Path, settings: dict[str, Any], d_sae: int) -> int:
    k = settings.get("k", settings.get("activation_fn_kwargs", {}).get("k"))
    if not isinstance(k, int) or not 1 <= k <= d_sae:
        raise SaeTrainingError(
            f"{folder / CONFIG}: k = {k!r} is not a number from 1 to {d_sae}; download the file again."
        )
    return k


def _metadata(settings: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Model, hook and architecture, which sae-lens before 6.0 kept at the top level."""
    nested = settings.get("metadata")
    known = nested if isinstance(nested, dict) else settings
    found = {name: known.get(name) for name in ("model_name", "hook_name", "dataset_path")}
    return {"architecture": architecture, **{name: value for name, value in found.items() if value is not None}}
