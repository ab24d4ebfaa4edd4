"""Feature edits as pure functions of activations: residuals in, residual out.

With f the feature activations of the host h under a read-out, S the edited features and s_m, W_dec as in the
crosscoder (DESIGN.md, section 4; "delta" edits keep the reconstruction error):

* ablate, clamp, scale:  r' = r + s_h Σ_{k∈S} (f'_k − f_k) W_dec[k, h]  with f' = 0, a value, or a factor times f
  (ablate and clamp are those of arXiv 2604.25011; the delta form is ours)
* transplant (ours):  r' = r + Σ_{k∈S} (s_d f_k^d W_dec[k, d] − s_h f_k^h W_dec[k, h])  for a donor d
* replace:  r' = the reconstruction, with the features of S taken out; S empty is "reconstruction only"
* project:  r' = r without its component in the span of the decoder directions of S
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.errors import ConfigError
from sae_training import Crosscoder

EditKind = Literal["ablate", "clamp", "scale", "transplant", "replace", "project"]
_NEEDS_VALUE = ("clamp", "scale")


@dataclass(frozen=True)
class Edit:
    """An edit and its strength (``clamp`` and ``scale`` only; a clamp value is in the crosscoder's scaled units)."""

    kind: EditKind
    value: float | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value:g}"

    @classmethod
    def parse(cls, text: str) -> "Edit":
        """Read ``ablate``, ``clamp:3.0``, ``scale:0.5``, ``transplant``, ``replace`` or ``project``.

        Raises:
            ConfigError: The text names no edit, or its value is missing, superfluous or no finite number.
        """
        kind, colon, value = text.partition(":")
        if kind not in get_args(EditKind):
            raise ConfigError(
                f"'{text}' names no edit; write ablate, clamp:V, scale:A, transplant, replace or project."
            )
        if (kind in _NEEDS_VALUE) != bool(colon):
            raise ConfigError(f"'{text}': write {kind}:<number>." if not colon else f"'{text}': {kind} takes no value.")
        if not colon:
            return cls(kind)  # pyright: ignore[reportArgumentType]
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            raise ConfigError(f"'{text}': {value!r} is no finite number.")
        return cls(kind, number)  # pyright: ignore[reportArgumentType]


def own_decoder(crosscoder: Crosscoder, ids: Tensor, model: str) -> Float[Tensor, "feature d_model"]:
    """s_m W_dec[k, m] for the features of ``ids``: what a unit of each feature writes, in the model's own units."""
    columns = crosscoder.columns(model)
    return (crosscoder.decoder[ids][:, columns] * crosscoder.column_scale()[columns]).detach()


def feature_acts_of(
    crosscoder: Crosscoder, x: Float[Tensor, "batch model d_model"], ids: Tensor
) -> Float[Tensor, "batch feature"]:
    """Activations of some features; only those are encoded where the variant decides each feature by itself."""
    if crosscoder.config.variant == "topk":
        return crosscoder.encode(x)[:, ids]
    hidden_pre = torch.addmm(crosscoder.b_enc[ids], crosscoder.scaled(x), crosscoder.encoder[ids].T)
    acts = torch.relu(hidden_pre)
    norm = crosscoder.feature_norm()[ids]
    threshold = crosscoder.threshold[ids] if crosscoder.threshold.ndim else crosscoder.threshold
    mask = crosscoder.variant.inference_mask(acts * norm, k=crosscoder.config.k, threshold=threshold)
    return acts * mask


def edited_acts(acts: Float[Tensor, "batch feature"], edit: Edit) -> Float[Tensor, "batch feature"]:
    """What ablate, clamp and scale make of the activations: f'."""
    if edit.kind == "ablate":
        return torch.zeros_like(acts)
    if edit.kind == "clamp":
        return torch.full_like(acts, float(edit.value or 0.0))
    return acts * float(edit.value or 0.0)


def without_span(
    resid: Float[Tensor, "*batch d_model"], directions: Float[Tensor, "feature d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """The residual without its component in the span of ``directions`` (rank decided at 1e-6 of the largest)."""
    _, values, basis = torch.linalg.svd(directions.to(resid.dtype), full_matrices=False)
    basis = basis[values > 1e-6 * values.max()]
    return resid - (resid @ basis.T) @ basis
