"""Conversion to a `Crosscoder`: of the formula of a published crosscoder, and of SAEs of several models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_training.config import CrosscoderConfig, Variant
from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.importing.single_sae import SingleSae
from sae_training.weights import sum_of_norms


@dataclass(frozen=True)
class PublishedCrosscoder:
    """The inference formula of a published crosscoder, in float64.

    With r_m the raw activation of model m::

        x_m = (r_m - shift_m) / divisor_m;   h = sum_m x_m W_enc[m] + b_enc
        f_k = h_k where h_k > 0 and h_k norm_k > threshold, else 0      (without a threshold: where h_k > 0)
        r_hat_m = multiplier_m (f W_dec[m] + b_dec[m]) + shift_m

    Attributes:
        format: Name of the file format.
        path: The weights file.
        encoder: Encoder W_enc ``[d_model d_sae]`` of each model.
        decoder: Decoder W_dec ``[d_sae d_model]`` of each model.
        b_enc: Encoder bias ``[d_sae]``.
        b_dec: Decoder bias ``[d_model]`` of each model.
        shift: Mean ``[d_model]`` of each model.
        divisor: Divisor of each model's activations.
        multiplier: Multiplier of each model's reconstruction: the divisor, except for 1e-8 that one library adds.
        has_scale: Whether the file determines divisor and shift; otherwise the user may give a scale.
        needs_scale: Whether the user must give a scale, because the authors scaled activations without storing the
            factor.
        threshold: Threshold on h_k norm_k; None for a ReLU.
        norm: The weights norm_k ``[d_sae]`` of the selection; None if ``threshold`` is None.
        k: Number of active latents per token in training, if the file has it.
        dtype: Dtype of the crosscoder.
        hint: Names of the models or sites, if the file has them.
    """

    format: str
    path: Path
    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    b_enc: Tensor
    b_dec: tuple[Tensor, ...]
    shift: tuple[Tensor, ...]
    divisor: tuple[float, ...]
    multiplier: tuple[float, ...]
    has_scale: bool = True
    needs_scale: bool = False
    threshold: float | None = None
    norm: Tensor | None = None
    k: int | None = None
    dtype: torch.dtype = torch.float32
    hint: tuple[str, ...] = ()

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.encoder)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each model."""
        return tuple(part.shape[0] for part in self.encoder)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.b_enc)

    def to_crosscoder(
        self, names: Sequence[str] | None = None, scale: Sequence[float | int] | None = None
    ) -> Crosscoder:
        """Convert it to a `Crosscoder` with the same latents and reconstructions, up to the rounding of the weights.

        The divisors become the scale, and the shifts go into the biases. The score of a `Crosscoder` uses the sum of
        the decoder norms. A threshold on another norm becomes a threshold per latent.

        Args:
            names: Names of the models, in the order of the file.
            scale: Divisor of each model's raw activations, if the file lacks it.

        Raises:
            SaeTrainingError: The names or the scale do not fit the file.
        """
        divisor, multiplier = self._scales(scale)
        rounded = torch.tensor(multiplier, dtype=torch.float64).to(self.dtype)
        s = rounded.double().tolist()
        parts = zip(self.encoder, divisor, s, strict=True)
        encoder = torch.cat([part * (own / div) for part, div, own in parts])
        moved = [sh @ part / div for sh, part, div in zip(self.shift, self.encoder, divisor, strict=True)]
        pairs = list(zip(multiplier, s, strict=True))
        decoder = torch.cat([part * (mul / own) for part, (mul, own) in zip(self.decoder, pairs, strict=True)], dim=1)
        biases = zip(self.b_dec, self.shift, pairs, strict=True)
        b_dec = torch.cat([part * (mul / own) + sh / own for part, sh, (mul, own) in biases])
        weights = {
            "W_enc": encoder,
            "W_dec": decoder,
            "b_enc": self.b_enc - sum(moved),
            "b_dec": b_dec,
            "scale": rounded,
        }
        widths = self.widths[0] if len(set(self.widths)) == 1 else self.widths
        shape: dict[str, Any] = {"n_models": self.n_models, "d_model": widths, "d_sae": self.d_sae}
        if names is not None:
            shape["model_names"] = tuple(names)
        if self.k is not None:
            shape["k"] = self.k
        try:
            return build(weights, shape, cut=self._cut(decoder))
        except SaeTrainingError as error:
            raise SaeTrainingError(f"{self.path}: {error}") from None

    def _scales(self, scale: Sequence[float | int] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if scale is None:
            if self.needs_scale:
                raise SaeTrainingError(
                    f"{self.path} ({self.format}) was trained on scaled activations, but does not hold the factors; give "
                    f"as scale the {self.n_models} divisors of the raw activations (1 / the published factor, or 1 if "
                    "it is folded in)."
                )
            return self.divisor, self.multiplier
        if self.has_scale:
            raise SaeTrainingError(f"{self.path} holds its own scale {list(self.divisor)}; leave scale out.")
        values = tuple(float(value) for value in scale)
        if len(values) != self.n_models or not all(math.isfinite(value) and value > 0 for value in values):
            raise SaeTrainingError(
                f"scale = {list(values)} must be {self.n_models} positive numbers, one for each model of {self.path}."
            )
        return values, values

    def _cut(self, decoder: Float[Tensor, "d_sae d_all"]) -> Float[Tensor, " d_sae"] | float | None:
        """The threshold on the score f_k n_k: one number if n_k equals the norm of the authors, else one per latent."""
        if self.threshold is None or self.norm is None:
            return None
        summed = sum_of_norms(decoder, self.widths)
        if bool((torch.abs(summed - self.norm) <= 1e-6 * summed).all()):
            return max(0.0, self.threshold)
        # A latent whose decoder is 0 has score 0 under both norms, and is never active.
        ratio = torch.where(self.norm > 0, summed / self.norm, 0.0)
        return max(0.0, self.threshold) * ratio


def build(weights: Mapping[str, Tensor], shape: dict[str, Any], *, cut: Tensor | float | None) -> Crosscoder:
    """Make a crosscoder with given weights.

    Args:
        weights: All tensors but the threshold, as `Crosscoder.tensors` names them; ``scale`` decides the dtype.
        shape: Keywords of `CrosscoderConfig`; the variant follows from ``cut``.
        cut: None for a ReLU (l1), a number for one threshold on the scores (batchtopk), ``[d_sae]`` for one per latent
            (jumprelu).

    Raises:
        SaeTrainingError: A keyword is not accepted.
    """
    variant: Variant = "l1" if cut is None else "jumprelu" if isinstance(cut, Tensor) else "batchtopk"
    if variant == "batchtopk":
        shape = {"k": min(32, shape["d_sae"]), **shape}
    else:
        shape = {name: value for name, value in shape.items() if name != "k"}
    tensors = {name: tensor.to(weights["scale"].dtype) for name, tensor in weights.items()}
    threshold = torch.as_tensor(0.0 if cut is None else cut, dtype=torch.float64)
    config = CrosscoderConfig(**{**shape, "variant": variant})
    return Crosscoder.from_tensors(config, {**tensors, "threshold": threshold})


def block_crosscoder(saes: Mapping[str, SingleSae]) -> Crosscoder:
    """A block-diagonal crosscoder: the latents of model m are those of its SAE, and read and write only m.

    Latents, reconstructions and edits equal those of the SAEs, up to the rounding of the weights, so per-model SAEs can
    be used in place of a crosscoder. The exception are latents whose decoder is 0, which are never active here. The
    result is *not* one dictionary: no latent is shared, the MAS of the owner is 1 by construction, and `d_sae` and L0
    are sums over the models.

    A threshold t_k on h_k is a threshold t_k ||W_dec[k]|| on the score h_k ||W_dec[k]||. If it is one number c_m for
    all latents of each SAE, as for the BatchTopK of sae-lens, the scales s_m = c_m give one threshold of 1 for all
    latents (own derivation). Otherwise each latent has its own threshold.

    Args:
        saes: SAEs by model, in the order of the model axis; at least two.

    Raises:
        SaeTrainingError: There are fewer than two SAEs, or a topk SAE, whose k counts latents within one model.
    """
    if len(saes) < 2:
        raise SaeTrainingError(f"block_crosscoder needs SAEs of at least two models, not {len(saes)}; give more.")
    for name, sae in saes.items():
        if sae.k is not None:
            raise SaeTrainingError(
                f"the SAE of {name} keeps its {sae.k} highest latents, which a crosscoder cannot do for each model "
                "separately; use SAEs with a threshold (jumprelu, batchtopk) or ReLU."
            )
    own = [sae.to(device="cpu", dtype=torch.float64) for sae in saes.values()]
    norms = [torch.linalg.vector_norm(sae.W_dec, dim=1) for sae in own]
    cuts = [sae.threshold.clamp(min=0) * norm for sae, norm in zip(own, norms, strict=True)]
    scale, cut = _scale_and_cut(cuts, norms)
    dtype = torch.float64 if any(sae.W_enc.dtype == torch.float64 for sae in saes.values()) else torch.float32
    rounded = torch.tensor(scale, dtype=torch.float64).to(dtype)
    s = rounded.double().tolist()
    weights = {
        "W_enc": torch.block_diag(*(sae.W_enc * value for sae, value in zip(own, s, strict=True))),
        "W_dec": torch.block_diag(*(sae.W_dec / value for sae, value in zip(own, s, strict=True))),
        "b_enc": torch.cat([sae.b_enc for sae in own]),
        "b_dec": torch.cat([sae.b_dec / value for sae, value in zip(own, s, strict=True)]),
        "scale": rounded,
    }
    widths = tuple(sae.d_model for sae in own)
    shape: dict[str, Any] = {
        "n_models": len(own),
        "d_model": widths[0] if len(set(widths)) == 1 else widths,
        "d_sae": sum(sae.d_sae for sae in own),
        "n_dedicated": tuple(sae.d_sae for sae in own),
        "model_names": tuple(saes),
    }
    return build(weights, shape, cut=cut)


def _scale_and_cut(cuts: list[Tensor], norms: list[Tensor]) -> tuple[list[float], Tensor | float | None]:
    """Scale of each model, and the threshold on the score: None, one number, or one per latent."""
    if not any(bool((cut > 0).any()) for cut in cuts):
        return [1.0] * len(cuts), None
    # A latent whose decoder is 0 has score 0, whatever its threshold.
    live = [cut[norm > 0] for cut, norm in zip(cuts, norms, strict=True)]
    if all(len(c) and bool((c > 0).all()) and bool(c.max() - c.min() <= 1e-6 * c.max()) for c in live):
        return [float(values.mean()) for values in live], 1.0
    return [1.0] * len(cuts), torch.cat(cuts)
