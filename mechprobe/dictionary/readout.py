"""The activation of a latent *in one model*: a definition is needed, because the encoder reads all models at once.

``swap`` puts the model's activation into every slot of a near-identical model and lets the others keep theirs (single
encoders of near-identical models are not identified; arXiv 2609.35210). ``joint`` reads all models on the same tokens:
one value that every model shares. ``single`` fills only the model's own slot, the others with zeros.
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
    """How one model's latent activations are read.

    Attributes:
        mode: ``swap``, ``joint`` or ``single``.
        near: Models that may stand in each other's slots under ``swap``; None means all of them, and then the
            activation of the model read is all that is needed.
    """

    mode: ReadoutMode = "swap"
    near: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("swap", "joint", "single"):
            raise ConfigError(f"Read-out {self.mode!r} does not exist; take swap, joint or single.")

    def __str__(self) -> str:
        return f"swap({','.join(self.near)})" if self.mode == "swap" and self.near else self.mode

    @torch.no_grad()
    def feature_acts(
        self, crosscoder: Crosscoder, x: Mapping[str, Tensor] | Float[Tensor, "batch model d_model"], model: str | int
    ) -> Float[Tensor, "... d_sae"]:
        """Latent activations of ``model``.

        Args:
            crosscoder: The dictionary.
            x: Raw activations, either ``[batch model d_model]`` or by model name (any leading axes; only the models
                that the mode needs).
            model: Whose activations are read, by name or index. Under ``joint`` it changes nothing.

        Raises:
            InputError: An activation that the mode needs is missing.
        """
        stacked = self.slots(crosscoder, x, model)
        flat = stacked.reshape(-1, *stacked.shape[-2:])
        return crosscoder.encode(flat).reshape(*stacked.shape[:-2], -1)

    def slots(
        self, crosscoder: Crosscoder, x: Mapping[str, Tensor] | Tensor, model: str | int
    ) -> Float[Tensor, "... model d_model"]:
        """What is put into the encoder, raw, one slot per model."""
        names = list(crosscoder.model_names)
        index = crosscoder.model_index(model)
        if self.mode == "joint":
            return torch.stack([_take(x, names, slot, self) for slot in range(len(names))], dim=-2)
        own = _take(x, names, index, self)
        if self.mode == "single":
            slots = [own if slot == index else torch.zeros_like(own) for slot in range(len(names))]
            return torch.stack(slots, dim=-2)
        shared = self.shared_slots(names, index)
        return torch.stack(
            [
                _in_units(own, crosscoder, index, slot) if slot in shared else _take(x, names, slot, self)
                for slot in range(len(names))
            ],
            dim=-2,
        )

    def shared_slots(self, names: list[str], index: int) -> set[int]:
        """Under ``swap``: the slots that get the activation of model ``index`` of ``names``."""
        if self.near is None:
            return set(range(len(names)))
        check_near(self.near, names)
        group = {names.index(name) for name in self.near}
        return group if index in group else {index}


def check_near(near: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raise `ConfigError` where ``near`` names a model that is none of the crosscoder's."""
    unknown = [name for name in near or () if name not in names]
    if unknown:
        raise ConfigError(f"near names '{unknown[0]}', but the crosscoder has {', '.join(names)}.")


def _take(x: Mapping[str, Tensor] | Tensor, names: list[str], slot: int, readout: Readout) -> Tensor:
    if isinstance(x, Tensor):
        return x[..., slot, :]
    if names[slot] not in x:
        given = ", ".join(x) or "none"
        raise InputError(f"Read-out {readout} needs the activation of '{names[slot]}', but only {given} is given.")
    return x[names[slot]]


def _in_units(own: Tensor, crosscoder: Crosscoder, index: int, slot: int) -> Tensor:
    """``own`` so that, divided by the slot's scale, it is what its own slot would see."""
    if slot == index:
        return own
    scale = model_scale(crosscoder).to(own.device, own.dtype)
    return own * (scale[slot] / scale[index])


def model_scale(crosscoder: Crosscoder) -> Float[Tensor, " model"]:
    """The divisor of each model's activations; 1 where it was never set."""
    return crosscoder.scale if crosscoder.has_scale else torch.ones_like(crosscoder.scale)
