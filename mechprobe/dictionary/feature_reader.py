"""Activations of some features in one model, read again and again while a model runs."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.dictionary.readout import Readout, model_scale
from mechprobe.errors import ConfigError, InputError
from sae_training import Crosscoder


def slots_by_source(crosscoder: Crosscoder, readout: Readout, model: str) -> dict[str, list[int]]:
    """Whose residual goes into which encoder slots when ``model``'s features are read; a slot of nobody gets zeros."""
    names, own = list(crosscoder.model_names), crosscoder.model_index(model)
    if readout.mode == "joint":
        return {name: [slot] for slot, name in enumerate(names)}
    if readout.mode == "single":
        return {names[own]: [own]}
    shared = readout.shared_slots(names, own)
    return {names[own]: sorted(shared)} | {name: [slot] for slot, name in enumerate(names) if slot not in shared}


class FeatureReader:
    """Reads the activations of some features, with all that does not change from call to call made beforehand.

    Only the features asked for are encoded (under ``topk`` all are, since they compete), and slots that get the same
    residual have their weights added up, so that a read-out costs one product for each model that it reads::

        h_S = b_S + Σ_m x_m V_m,   V_m = Σ_{slots that m fills} W_enc[slot, S] / s_m

    which is the encoder's own sum in another order. The crosscoder must not change meanwhile.

    Attributes:
        sources: The models whose residuals are read.
    """

    def __init__(self, crosscoder: Crosscoder, ids: Int[Tensor, " feature"], model: str, readout: Readout) -> None:
        slots = slots_by_source(crosscoder, readout, model)
        _check_widths(crosscoder, slots)
        competing = crosscoder.variant.name == "topk"
        rows = torch.arange(crosscoder.d_sae, device=ids.device) if competing else ids
        scale = model_scale(crosscoder).double()
        self.sources = tuple(slots)
        self._readout = readout
        self._weights: list[tuple[str, Tensor]] = [
            (source, _added_up(crosscoder, filled, rows, float(scale[crosscoder.model_index(source)])))
            for source, filled in slots.items()
        ]
        self._bias = crosscoder.b_enc.detach()[rows]
        self._norm = crosscoder.feature_norm().detach()[rows]
        threshold = crosscoder.threshold[rows] if crosscoder.threshold.ndim else crosscoder.threshold
        self._threshold = threshold.to(self._norm.dtype)
        self._picked = ids if competing else None
        self._variant, self._k = crosscoder.variant, crosscoder.config.k

    def __call__(self, x: Mapping[str, Tensor]) -> Float[Tensor, "row feature"]:
        """Activations, from residuals ``[... d_model]`` by model name.

        Raises:
            InputError: A residual that the read-out needs is missing.
        """
        hidden_pre = self._bias
        for source, weights in self._weights:
            if source not in x:
                given = ", ".join(x) or "none"
                raise InputError(
                    f"Read-out {self._readout} needs the residual of '{source}', but only {given} is given."
                )
            flat = x[source].reshape(-1, len(weights)).to(weights)
            hidden_pre = torch.addmm(hidden_pre, flat, weights)
        acts = torch.relu_(hidden_pre)
        acts = acts * self._variant.inference_mask(acts * self._norm, k=self._k, threshold=self._threshold)
        return acts if self._picked is None else acts[:, self._picked]


def _added_up(crosscoder: Crosscoder, slots: list[int], rows: Tensor, scale: float) -> Float[Tensor, "d_model feature"]:
    """Σ_slots W_enc[slot, rows] / scale, summed in float64."""
    first, *others = (crosscoder.encoder_of(slot).detach()[rows] for slot in slots)
    total = first.double()
    for other in others:
        total += other.double()
    return (total / scale).to(first.dtype).T.contiguous()


def _check_widths(crosscoder: Crosscoder, slots: Mapping[str, list[int]]) -> None:
    names, widths = crosscoder.model_names, crosscoder.config.widths
    for source, filled in slots.items():
        own = widths[crosscoder.model_index(source)]
        for slot in filled:
            if widths[slot] != own:
                raise ConfigError(
                    f"Under swap the residual of {source} ({own} wide) stands in for that of {names[slot]} "
                    f"({widths[slot]} wide); name as near only models of one width, or read jointly."
                )
