"""Read-outs: how the feature activations of one model are read through the joint encoder.

The encoder sums over one slot per model, so the activation of a feature *in one model* needs a definition:

- ``swap`` puts the model's residual into the slots of all models near to it; the other slots keep their own model's residual.
  Single encoders of near-identical models are not identified (arXiv 2609.35210), but their sum is.
- ``joint`` puts every model's residual into its own slot: one activation that all models share.
- ``single`` fills the model's own slot; the other slots get zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.errors import ConfigError, InputError
from mechprobe.types import ReadoutMode
from sae_training import Crosscoder


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
            raise ConfigError(f"There is no read-out {self.mode!r}; choose swap, joint or single.")

    def __str__(self) -> str:
        return f"swap({','.join(self.near)})" if self.mode == "swap" and self.near else self.mode

    def slots(self, crosscoder: Crosscoder, model: str | int) -> dict[str, list[int]]:
        """The slot map: for each model whose residual is read, the encoder slots that the residual fills.

        Args:
            crosscoder: The dictionary.
            model: The model whose features are read, by name or index.

        Returns:
            Slots by model name. Under ``swap`` and ``single`` the model itself comes first. A slot in no list gets zeros.

        Raises:
            ConfigError: ``near`` names a model that the crosscoder lacks, or models of different widths share slots.
        """
        names, own = list(crosscoder.model_names), crosscoder.model_index(model)
        if self.mode == "joint":
            return {name: [slot] for slot, name in enumerate(names)}
        if self.mode == "single":
            return {names[own]: [own]}
        check_near(self.near, names)
        near = names if self.near is None else self.near
        shared = sorted(names.index(name) for name in near) if names[own] in near else [own]
        _check_widths(crosscoder, own, shared)
        return {names[own]: shared} | {name: [slot] for slot, name in enumerate(names) if slot not in shared}

    @torch.no_grad()
    def feature_acts(
        self, crosscoder: Crosscoder, x: Mapping[str, Tensor] | Float[Tensor, "batch model d_model"], model: str | int
    ) -> Float[Tensor, "... d_sae"]:
        """Feature activations of one model, by the crosscoder's own encoder.

        `mechprobe.dictionary.folded_encoder` computes the same with fewer products, to rounding.

        Args:
            crosscoder: The dictionary.
            x: Raw residuals, as ``[batch model d_model]`` or by model name with any leading axes. A mapping needs only
                the models of `slots`.
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
        resid = {source: self._take(x, names, source) for source in sorted(set(source_of.values()))}
        empty = torch.zeros_like(next(iter(resid.values())))
        return torch.stack(
            [
                _in_units(resid[source_of[slot]], crosscoder, source_of[slot], slot) if slot in source_of else empty
                for slot in range(len(names))
            ],
            dim=-2,
        )

    def _take(self, x: Mapping[str, Tensor] | Tensor, names: list[str], source: int) -> Tensor:
        return x[..., source, :] if isinstance(x, Tensor) else require_residual(x, names[source], self)


def require_residual(x: Mapping[str, Tensor], name: str, readout: Readout) -> Tensor:
    """The residual of a model; `InputError` where it is missing."""
    if name not in x:
        given = ", ".join(x) or "none"
        raise InputError(f"Read-out {readout} needs the residual of '{name}', but the residuals given are: {given}.")
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


def _check_widths(crosscoder: Crosscoder, own: int, shared: Sequence[int]) -> None:
    names, widths = crosscoder.model_names, crosscoder.config.widths
    for slot in shared:
        if widths[slot] != widths[own]:
            raise ConfigError(
                f"Under swap the residual of {names[own]} (width {widths[own]}) would fill the slot of {names[slot]} "
                f"(width {widths[slot]}); name in near only models of one width, or take the joint read-out."
            )


def _in_units(resid: Tensor, crosscoder: Crosscoder, source: int, slot: int) -> Tensor:
    """``resid`` such that, divided by the scale of the slot, it equals what its own slot would see."""
    if slot == source:
        return resid
    scale = model_scale(crosscoder).to(resid.device, resid.dtype)
    return resid * (scale[slot] / scale[source])
