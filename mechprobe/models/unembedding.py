"""From a direction in the last residual stream to tokens: a model's final norm and unembedding, read from the model.

Every final norm in use has the form gain ⊙ (x − mean) / spread + shift (LayerNorm) or without the mean (RMSNorm).
With the spread held fixed, adding a direction d to the residual therefore changes the logits by
W_U (gain ⊙ (d − mean d)) / spread, or W_U (gain ⊙ d) / spread. The gain is *measured* by passing two vectors through
the module, so that a norm that stores it otherwise (Gemma keeps gain − 1) is read right; the spread, a positive
number that depends on the token, is left out.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 16384
"""Rows of the unembedding that are taken to float32 together."""
_PROBE_SIZE = 100.0
"""Spread of the probe vectors: large, so that the norm's epsilon does not count."""


@dataclass(frozen=True)
class Unembedding:
    """What lies between the last residual stream and the logits.

    Attributes:
        weight: W_U.
        gain: Of the final norm; ones where the model has none.
        centered: Whether the final norm takes the mean out.
    """

    weight: Float[Tensor, "vocab d_model"]
    gain: Float[Tensor, " d_model"]
    centered: bool

    def logits(
        self, directions: Float[Tensor, "direction d_model"], *, norm: bool = True
    ) -> Float[Tensor, "direction vocab"]:
        """Change of the logits along some directions, about its mean over the vocabulary (softmax ignores a constant).

        Args:
            directions: In the model's own units, such as s_m W_dec[k, m].
            norm: Take them through the final norm with its spread held fixed (values are then logits times that
                spread); otherwise W_U d alone.
        """
        through = directions.to(self.weight.device, torch.float32)
        if norm:
            if self.centered:
                through = through - through.mean(dim=1, keepdim=True)
            through = through * self.gain
        parts = [through @ part.float().T for part in self.weight.split(_CHUNK)]
        logits = torch.cat(parts, dim=1)
        return logits - logits.mean(dim=1, keepdim=True)


@torch.no_grad()
def unembedding(model: LanguageModel) -> Unembedding:
    """Final norm and unembedding of a model, tied or not.

    The final norm is found by running one token: it is the module whose output goes into the unembedding.

    Raises:
        ModelError: The model has no linear unembedding of the residual's width, or something other than a norm of the
            form above lies in front of it.
    """
    head: Any = model.hf.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Module) or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(f"Model {model.name} has no unembedding matrix; tokens that a feature promotes cannot be had.")
    norm = _final_norm(model, head)
    width = model.d_model
    if weight.shape[1] != width:
        raise ModelError(
            f"Model {model.name}: the unembedding has width {weight.shape[1]} and the residual {width}; a projection lies "
            "between them, which is not supported. Set features.n_promoted=0."
        )
    if norm is None:
        return Unembedding(weight, torch.ones(width, device=weight.device), centered=False)
    gain, centered = _measured(norm, width, weight.device, model.name)
    return Unembedding(weight, gain, centered)


def _final_norm(model: LanguageModel, head: nn.Module) -> nn.Module | None:
    """The childless module outside the blocks whose output is the head's input; None where a block's output is it."""
    hf: PreTrainedModel = model.hf
    blocks = find_blocks(hf)
    inside = {id(part) for block in blocks for part in block.modules()}
    outputs: list[tuple[nn.Module, Tensor]] = []
    into: list[Tensor] = []

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            outputs.append((module, value))

    watched = [
        part for part in hf.modules() if part is not head and id(part) not in inside and not any(part.children())
    ]
    handles = [part.register_forward_hook(keep) for part in (*watched, blocks[-1])]
    handles.append(head.register_forward_pre_hook(lambda _module, inputs: into.append(inputs[0])))
    try:
        hf(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=hf.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for module, value in reversed(outputs):
        if into and value.shape == into[0].shape and torch.equal(value, into[0]):
            return None if module is blocks[-1] else module
    raise ModelError(
        f"Model {model.name}: what goes into the unembedding is no module's output, so the final norm cannot be found; "
        "set features.n_promoted=0."
    )


def _measured(norm: nn.Module, width: int, device: torch.device, name: str) -> tuple[Tensor, bool]:
    """Gain of a norm and whether it is blind to the mean; `ModelError` where it is no such norm."""
    exact = copy.deepcopy(norm).double()
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2, width, generator=generator, dtype=torch.float64)
    probes = _PROBE_SIZE * _standard(probes + probes.sign())  # no entry near zero, mean 0, spread 1
    probes = probes.to(device)

    def odd(x: Tensor) -> Tensor:  # the shift falls out
        return ((exact(x[None, None]) - exact(-x[None, None])) / 2)[0, 0].double()

    gain = odd(probes[0]) / (probes[0] / _PROBE_SIZE)
    moved = probes[1] + 3 * _PROBE_SIZE
    for centered in (False, True):
        kept = moved - moved.mean() if centered else moved
        expected = gain * kept / kept.square().mean().sqrt()
        if torch.allclose(odd(moved), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())):
            return gain.float(), centered
    raise ModelError(
        f"Model {name}: {type(norm).__name__} in front of the unembedding is neither a layer norm nor an RMS norm; "
        "set features.n_promoted=0."
    )


def _standard(x: Float[Tensor, "probe d_model"]) -> Float[Tensor, "probe d_model"]:
    x = x - x.mean(dim=1, keepdim=True)
    return x / x.square().mean(dim=1, keepdim=True).sqrt()
