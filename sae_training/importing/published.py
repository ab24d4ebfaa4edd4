"""A published crosscoder as its authors define it, and the same function as a `Crosscoder`."""

from __future__ import annotations

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
from sae_training.weights import sum_of_norms


@dataclass(frozen=True)
class PublishedCrosscoder:
    """The inference formula of a published crosscoder, in float64.

    With r_m the raw activation of model m::

        x_m = (r_m - shift_m) / divisor_m;   h = sum_m x_m W_enc[m] + b_enc
        f_k = h_k where h_k > 0 and h_k norm_k > threshold, else 0      (without a threshold: where h_k > 0)
        r_hat_m = multiplier_m (f W_dec[m] + b_dec[m]) + shift_m

    Attributes:
        format: name of the format it was read from.
        path: the weights file.
        encoder: per model, W_enc ``[d_model d_sae]``.
        decoder: per model, W_dec ``[d_sae d_model]``.
        b_enc: ``[d_sae]``.
        b_dec: per model, ``[d_model]``.
        shift: per model, ``[d_model]``.
        divisor: per model.
        multiplier: per model; the divisor, but for the 1e-8 that one library adds on the way back.
        has_scale: whether the file fixes divisor and shift; where it does not, the user may.
        needs_scale: whether the authors always scaled and did not store by what, so that the user must.
        threshold: on h_k norm_k; None for a plain ReLU.
        norm: norm_k ``[d_sae]`` of the authors' selection; None with ``threshold = None``.
        k: features active per token that it was trained for, where the file says.
        dtype: of the weights to make.
        hint: names of the models or sites, where the file says.
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
        """How many activations it reads."""
        return len(self.encoder)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each."""
        return tuple(part.shape[0] for part in self.encoder)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.b_enc)

    def to_crosscoder(
        self, names: Sequence[str] | None = None, scale: Sequence[float | int] | None = None
    ) -> Crosscoder:
        """The same features and reconstructions as a `Crosscoder`, up to the rounding of its weights.

        The divisors become its scale, the shifts go into its biases. A threshold on a norm other than the sum of the
        decoder norms, which is what our score uses, becomes a threshold per feature.

        Args:
            names: of the models, in the file's order.
            scale: divisor of each model's raw activations, where the file does not say.

        Raises:
            SaeTrainingError: names or scale do not fit, or our variants cannot express the selection.
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
                    f"{self.path} ({self.format}) was trained on scaled activations and does not hold the factors; give "
                    f"scale = the {self.n_models} divisors of the raw activations (1 / the published factor, or 1 each "
                    "where they are folded in)."
                )
            return self.divisor, self.multiplier
        if self.has_scale:
            raise SaeTrainingError(f"{self.path} holds its own scale {list(self.divisor)}; leave scale out.")
        values = tuple(float(value) for value in scale)
        if len(values) != self.n_models or not all(math.isfinite(value) and value > 0 for value in values):
            raise SaeTrainingError(
                f"scale = {list(values)} is not {self.n_models} positive numbers; give one for each model of {self.path}."
            )
        return values, values

    def _cut(self, decoder: Float[Tensor, "d_sae d_all"]) -> Float[Tensor, " d_sae"] | float | None:
        """The threshold on our score f_k n_k: one number where our norm is the authors', else one per feature."""
        if self.threshold is None or self.norm is None:
            return None
        ours = sum_of_norms(decoder, self.widths)
        if bool((torch.abs(ours - self.norm) <= 1e-6 * ours).all()):
            return max(0.0, self.threshold)
        # A feature without a decoder has score 0 in both and is never active.
        ratio = torch.where(self.norm > 0, ours / self.norm, 0.0)
        return max(0.0, self.threshold) * ratio


def build(weights: Mapping[str, Tensor], shape: dict[str, Any], *, cut: Tensor | float | None) -> Crosscoder:
    """A crosscoder of given weights.

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
