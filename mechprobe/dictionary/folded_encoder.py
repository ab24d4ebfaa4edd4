"""Encoders of read-outs with everything that the crosscoder fixes computed once.

Slots that get the same residual add their weights up first, ``Σ_slot x W_slot = x (Σ_slot W_slot)``. Under ``swap`` among M
models a read-out then costs a product with one block of weights in place of M.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.dictionary.readout import Readout, model_scale, require_residual
from sae_training import Crosscoder


class FoldedEncoder:
    """The encoder of one model's read-out, for all features or for some.

    It computes::

        h = b_enc + Σ_source x_source V_source,    V_source = Σ_{slots of source} W_enc[slot] / s_source

    The crosscoder must not change while the encoder is in use.

    Attributes:
        sources: The models whose residuals are read.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        readout: Readout,
        model: str | int,
        features: Int[Tensor, " feature"] | None = None,
        *,
        scaled: bool = False,
    ) -> None:
        """Fold the weights.

        Args:
            crosscoder: The dictionary.
            readout: How the model's features are read.
            model: The model whose features are read.
            features: Features to encode, in the order wanted; None for all. Under ``topk`` all compete and are encoded.
            scaled: Whether the residuals come divided by their model's scale, which then stays out of the weights. One
                product over all sources serves large batches; otherwise each source has its own product, so that a model
                that runs with an edit copies nothing. The two agree to rounding.

        Raises:
            ConfigError: The crosscoder and the read-out do not fit; see `Readout.slots`.
        """
        competing = crosscoder.variant.name == "topk"
        rows = slice(None) if features is None or competing else features
        slots = readout.slots(crosscoder, model)
        self.sources = tuple(slots)
        self._readout = readout
        self._products = (_one_product if scaled else _product_per_source)(crosscoder, slots, rows)
        self._bias = crosscoder.b_enc.detach()[rows]
        self._norm = crosscoder.feature_norm().detach()[rows]
        threshold = crosscoder.threshold[rows] if crosscoder.threshold.ndim else crosscoder.threshold
        self._threshold = threshold.to(self._norm.dtype)
        self._picked = features if competing else None
        self._variant, self._k = crosscoder.variant, crosscoder.config.k

    def __call__(self, x: Mapping[str, Tensor]) -> Float[Tensor, "row feature"]:
        """Activations, from residuals ``[... d_model]`` by model name; leading axes are flattened.

        Raises:
            InputError: The residual of one of `sources` is missing.
        """
        hidden_pre = self._bias
        for sources, weights in self._products:
            width = len(weights) // len(sources)
            flat = [require_residual(x, source, self._readout).reshape(-1, width).to(weights) for source in sources]
            hidden_pre = torch.addmm(hidden_pre, flat[0] if len(flat) == 1 else torch.cat(flat, dim=1), weights)
        acts = torch.relu_(hidden_pre)
        acts = acts * self._variant.inference_mask(acts * self._norm, k=self._k, threshold=self._threshold)
        return acts if self._picked is None else acts[:, self._picked]


class AllReadouts:
    """Encodes batches by the joint read-out and by each model's own, in one pass over the residuals.

    Attributes:
        crosscoder: The dictionary, which must not change meanwhile.
        decoder: ``W_dec`` in float64.
        scale: Divisor of each model's activations, in float64.
    """

    def __init__(self, crosscoder: Crosscoder, readout: Readout) -> None:
        self.crosscoder = crosscoder
        self.decoder: Float[Tensor, "d_sae model d_model"] = crosscoder.W_dec.detach().double()
        self.scale: Float[Tensor, " model"] = model_scale(crosscoder).double()
        joint = Readout("joint")
        self._encoders: list[FoldedEncoder | None] = [
            None  # the joint read-out
            if readout.slots(crosscoder, name) == joint.slots(crosscoder, name)
            else FoldedEncoder(crosscoder, readout, name, scaled=True)
            for name in crosscoder.model_names
        ]

    @property
    def same_as_joint(self) -> list[bool]:
        """For each model, whether its own read-out is the joint one."""
        return [encoder is None for encoder in self._encoders]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch model d_model"]) -> list[Float[Tensor, "batch d_sae"]]:
        """Activations by the joint read-out, then by each model's own; equal read-outs give the same tensor."""
        crosscoder = self.crosscoder
        joint = crosscoder.encode(x)
        dtype = crosscoder.encoder.dtype
        scaled = (x.to(dtype) / self.scale.to(dtype)[:, None]).transpose(0, 1).contiguous()
        by_name = dict(zip(crosscoder.model_names, scaled, strict=True))
        return [joint, *(joint if encoder is None else encoder(by_name) for encoder in self._encoders)]


_Products = list[tuple[tuple[str, ...], Float[Tensor, "inputs feature"]]]
"""Models whose residuals stand side by side in a product, and its weights."""


def _one_product(crosscoder: Crosscoder, slots: Mapping[str, Sequence[int]], rows: slice | Tensor) -> _Products:
    """The encoders of all sources side by side, over scaled residuals; summed in the encoder's dtype."""
    sources = tuple(name for name in crosscoder.model_names if name in slots)
    blocks = [_summed(crosscoder, slots[source], rows, crosscoder.encoder.dtype) for source in sources]
    return [(sources, torch.cat(blocks, dim=1).T)]


def _product_per_source(crosscoder: Crosscoder, slots: Mapping[str, Sequence[int]], rows: slice | Tensor) -> _Products:
    """The encoder of each source over raw residuals; summed and divided by the scale in float64."""
    scale, dtype = model_scale(crosscoder).double(), crosscoder.encoder.dtype
    products: _Products = []
    for source, filled in slots.items():
        total = _summed(crosscoder, filled, rows, torch.float64) / scale[crosscoder.model_index(source)]
        products.append(((source,), total.to(dtype).T.contiguous()))
    return products


def _summed(
    crosscoder: Crosscoder, slots: Sequence[int], rows: slice | Tensor, dtype: torch.dtype
) -> Float[Tensor, "feature d_model"]:
    total, *others = (crosscoder.encoder_of(slot).detach()[rows].to(dtype) for slot in slots)
    for other in others:
        total = total + other
    return total
