"""Read-outs: how the feature activations of one model are read through the joint encoder.

The encoder sums over one slot per model, so the activation of a feature *in one model* needs a definition:

- ``swap`` puts the model's residual into the slots of all models near to it; the other slots keep their own model's residual.
  Single encoders of near-identical models are not identified (arXiv 2609.35210), but their sum is.
- ``joint`` puts every model's residual into its own slot: one activation that all models share.
- ``single`` fills the model's own slot; the other slots get zeros.

A dictionary of the *difference* between two models has one activation, the joint one: no model can stand in for the other,
so none are near under ``swap``, and ``single`` does not exist.

`Readout.feature_acts` computes them by the crosscoder's own encoder. `FoldedEncoder` agrees to rounding and is faster: slots
that get the same residual add their weights up first, ``Σ_slot x W_slot = x (Σ_slot W_slot)``. Under ``swap`` among M models a
read-out then costs a product with one block of weights in place of M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.errors import ConfigError, InputError
from mechprobe.types import ReadoutMode
from sae_training import Crosscoder
from sae_training.variants import ActivationVariant


@dataclass(frozen=True)
class Readout:
    """The definition by which one model's feature activations are read.

    Attributes:
        mode: ``swap``, ``joint`` or ``single``.
        near: Models similar enough to share encoder slots under ``swap``. None means all of them; then only the residual
            of the model itself is read.
    """

    mode: ReadoutMode = "swap"
    near: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("swap", "joint", "single"):
            raise ConfigError(f"The read-out {self.mode!r} does not exist; choose swap, joint or single.")

    def __str__(self) -> str:
        return f"swap({','.join(self.near)})" if self.mode == "swap" and self.near else self.mode

    def slots(self, crosscoder: Crosscoder, model: str | int) -> dict[str, list[int]]:
        """The slot map of the features of ``model``: by name of each model that is read, the slots that its residual fills.

        Under ``swap`` and ``single`` the model itself comes first. A slot in no list gets zeros.

        Raises:
            ConfigError: ``near`` names a model that the crosscoder lacks, models of different widths share slots, or one
                model of a difference is read alone.
        """
        names, own = list(crosscoder.model_names), crosscoder.model_index(model)
        of_difference = crosscoder.config.reads == "difference"
        if self.mode == "joint":
            return {name: [slot] for slot, name in enumerate(names)}
        if self.mode == "single" and of_difference:
            raise ConfigError(
                f"The dictionary reads the difference between {' and '.join(names)}, which one model alone does not have; "
                "take the joint read-out."
            )
        if self.mode == "single":
            return {names[own]: [own]}
        check_near(self.near, names)
        near = () if of_difference else names if self.near is None else self.near
        shared = sorted(names.index(name) for name in near) if names[own] in near else [own]
        widths = crosscoder.config.widths
        for slot in shared:
            if widths[slot] != widths[own]:
                raise ConfigError(
                    f"Under swap the residual of {names[own]} (width {widths[own]}) would fill the slot of {names[slot]} "
                    f"(width {widths[slot]}); name in near only models of one width, or take the joint read-out."
                )
        return {names[own]: shared} | {name: [slot] for slot, name in enumerate(names) if slot not in shared}

    @torch.no_grad()
    def feature_acts(
        self, crosscoder: Crosscoder, x: Mapping[str, Tensor] | Float[Tensor, "batch model d_model"], model: str | int
    ) -> Float[Tensor, "... d_sae"]:
        """Feature activations of one model, by the crosscoder's own encoder.

        Args:
            crosscoder: The dictionary.
            x: Raw residuals, stacked or by model name with any leading axes. A mapping needs only the models of `slots`.
            model: The model whose features are read, by name or index. ``joint`` gives the same for every model.

        Raises:
            InputError: The residual of a model that the read-out needs is missing.
        """
        stacked = self.encoder_input(crosscoder, x, model)
        flat = stacked.reshape(-1, *stacked.shape[-2:])
        return crosscoder.encode(flat).reshape(*stacked.shape[:-2], -1)

    def encoder_input(
        self, crosscoder: Crosscoder, x: Mapping[str, Tensor] | Tensor, model: str | int
    ) -> Float[Tensor, "... model d_model"]:
        """What each encoder slot gets, in the units of the slot's model."""
        names = list(crosscoder.model_names)
        slots = self.slots(crosscoder, model)
        source_of = {slot: names.index(source) for source, filled in slots.items() for slot in filled}
        resid = {
            source: x[..., source, :] if isinstance(x, Tensor) else self.residual(x, names[source])
            for source in sorted(set(source_of.values()))
        }
        empty = torch.zeros_like(next(iter(resid.values())))
        inputs = (
            _in_units(resid[source_of[slot]], crosscoder, source_of[slot], slot) if slot in source_of else empty
            for slot in range(len(names))
        )
        return torch.stack(list(inputs), dim=-2)

    def residual(self, x: Mapping[str, Tensor], name: str) -> Tensor:
        """The residual of one model; `InputError` where it is missing."""
        if name not in x:
            given = ", ".join(x) or "none"
            raise InputError(f"Read-out {self} needs the residual of '{name}', but the residuals given are: {given}.")
        return x[name]


def check_near(near: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raise `ConfigError` where ``near`` names a model that the crosscoder lacks."""
    unknown = [name for name in near or () if name not in names]
    if unknown:
        raise ConfigError(
            f"near names '{unknown[0]}', but the crosscoder has {', '.join(names)}; name its models only."
        )


def model_scale(crosscoder: Crosscoder) -> Float[Tensor, " model"]:
    """The divisor of each model's activations; 1 where the crosscoder has no scale."""
    return crosscoder.scale if crosscoder.has_scale else torch.ones_like(crosscoder.scale)


def _in_units(resid: Tensor, crosscoder: Crosscoder, source: int, slot: int) -> Tensor:
    """``resid`` such that, divided by the scale of the slot, it equals what its own slot would see."""
    if slot == source:
        return resid
    scale = model_scale(crosscoder).to(resid.device, resid.dtype)
    return resid * (scale[slot] / scale[source])


class FoldedEncoder:
    """The encoder of one model's read-out, for all features or for some.

    It computes::

        h = b_enc + Σ_source x_source V_source,    V_source = Σ_{slots of source} W_enc[slot] / s_source

    The crosscoder must not change while the encoder is in use. ``sources`` names the models whose residuals are read.
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
        """Fold the weights; raises as `Readout.slots` does.

        Args:
            crosscoder: The dictionary.
            readout: How the model's features are read.
            model: The model whose features are read.
            features: Features to encode, in the order wanted; None for all. Under ``topk`` all compete and are encoded.
            scaled: Whether the residuals come divided by their model's scale, which then stays out of the weights. One
                product over all sources serves large batches; otherwise each source has its own product, so that a model
                that runs with an edit copies nothing. The two agree to rounding.
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
            flat = [self._readout.residual(x, source).reshape(-1, width).to(weights) for source in sources]
            hidden_pre = torch.addmm(hidden_pre, flat[0] if len(flat) == 1 else torch.cat(flat, dim=1), weights)
        acts = _activated_(self._variant, hidden_pre, self._norm, k=self._k, threshold=self._threshold)
        return acts if self._picked is None else acts[:, self._picked]


class AllReadouts:
    """Encodes batches by the joint read-out and by each model's own, in one pass over the residuals.

    The crosscoder must not change meanwhile. ``decoder`` and ``scale`` are its ``W_dec`` and `model_scale` in float64.
    """

    def __init__(self, crosscoder: Crosscoder, readout: Readout) -> None:
        self.crosscoder = crosscoder
        self.decoder: Float[Tensor, "d_sae model d_model"] = crosscoder.W_dec.detach().double()
        self.scale: Float[Tensor, " model"] = model_scale(crosscoder).double()
        self._norm = crosscoder.feature_norm().detach()
        names, joint = crosscoder.model_names, Readout("joint")
        self.same_as_joint = [readout.slots(crosscoder, name) == joint.slots(crosscoder, name) for name in names]
        self._encoders = [
            None if same else FoldedEncoder(crosscoder, readout, name, scaled=True)
            for name, same in zip(names, self.same_as_joint, strict=True)
        ]

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch model d_model"]) -> list[Float[Tensor, "batch d_sae"]]:
        """Activations by the joint read-out, then by each model's own; equal read-outs give the same tensor."""
        crosscoder = self.crosscoder
        joint = _activated_(
            crosscoder.variant,
            crosscoder.hidden_pre(x),
            self._norm,
            k=crosscoder.config.k,
            threshold=crosscoder.threshold,
        )
        dtype = crosscoder.encoder.dtype
        scaled = (x.to(dtype) / self.scale.to(dtype)[:, None]).transpose(0, 1).contiguous()
        by_name = dict(zip(crosscoder.model_names, scaled, strict=True))
        return [joint, *(joint if encoder is None else encoder(by_name) for encoder in self._encoders)]


def _activated_(
    variant: ActivationVariant, hidden_pre: Tensor, norm: Tensor, *, k: int, threshold: Tensor
) -> Float[Tensor, "row feature"]:
    """What `Crosscoder.activate` gives, in place and with a norm that is computed once."""
    acts = torch.relu_(hidden_pre)
    return acts.mul_(variant.inference_mask(acts * norm, k=k, threshold=threshold))


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
    return reduce(torch.add, (crosscoder.encoder_of(slot).detach()[rows].to(dtype) for slot in slots))
