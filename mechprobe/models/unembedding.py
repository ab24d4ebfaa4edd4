"""From a direction in the last residual stream to tokens, through the final norm and the unembedding of a model.

The supported final norms are LayerNorm, gain ⊙ (x − mean) / spread + shift, and RMSNorm, which subtracts no mean. With the
spread held fixed, adding a direction d to the residual changes the logits by W_U (gain ⊙ (d − mean d)) / spread, or
W_U (gain ⊙ d) / spread. The spread is a positive number that depends on the token; it is omitted. The gain is measured by
passing two vectors through the module, because norms store it differently (Gemma stores gain − 1).
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.models.blocks import find_blocks
from mechprobe.models.load import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 16384
"""Number of rows of the unembedding that are converted to float32 at a time."""
_PROBE_SIZE = 100.0
"""Spread of the probe vectors; it is large, so that the norm's epsilon has no effect."""


@dataclass(frozen=True)
class Unembedding:
    """The map from the last residual stream to the logits.

    Attributes:
        weight: Unembedding W_U.
        gain: Gain of the final norm; ones if the model has no final norm.
        centered: Whether the final norm subtracts the mean.
    """

    weight: Float[Tensor, "vocab d_model"]
    gain: Float[Tensor, " d_model"]
    centered: bool

    def logits(
        self, directions: Float[Tensor, "direction d_model"], *, norm: bool = True
    ) -> Float[Tensor, "direction vocab"]:
        """Change of the logits along directions, minus its mean over the vocabulary, which softmax ignores.

        Args:
            directions: Directions in the units of the model's residual, such as s_m W_dec[k, m].
            norm: Whether to apply the final norm with its spread held fixed; values are then logits times that spread.
                Otherwise they are W_U d.
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
    """Find the final norm and the unembedding of a model; the unembedding may be tied to the embedding.

    The final norm is the module whose output is the input of the unembedding in a forward pass of one token.

    Raises:
        ModelError: The model has no linear unembedding of the residual's width, or its input does not come from a
            supported norm or from the last block.
    """
    head: Any = model.hf.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Module) or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(
            f"Model {model.name} has no unembedding matrix, so promoted tokens cannot be computed; "
            "set features.n_promoted=0."
        )
    norm = _final_norm(model, head)
    width = model.d_model
    if weight.shape[1] != width:
        raise ModelError(
            f"Model {model.name}: the unembedding has width {weight.shape[1]} and the residual {width}, and a projection "
            "between them is not supported; set features.n_promoted=0."
        )
    if norm is None:
        return Unembedding(weight, torch.ones(width, device=weight.device), centered=False)
    gain, centered = _measured(norm, width, weight.device, model.name)
    return Unembedding(weight, gain, centered)


def _final_norm(model: LanguageModel, head: nn.Module) -> nn.Module | None:
    """Find the module whose output is the head's input; None if that is the output of the last block.

    Only modules outside the blocks that have no children are considered.
    """
    hf: PreTrainedModel = model.hf
    blocks = find_blocks(hf)
    inside = {id(head), *(id(part) for block in blocks for part in block.modules())}
    outputs: list[tuple[nn.Module, Tensor]] = []
    into: list[Tensor] = []

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            outputs.append((module, value))

    watched = [part for part in hf.modules() if id(part) not in inside and not any(part.children())]
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
        f"Model {model.name}: the input of the unembedding is not the output of a module, so the final norm is unknown; "
        "set features.n_promoted=0."
    )


def _measured(norm: nn.Module, width: int, device: torch.device, name: str) -> tuple[Tensor, bool]:
    """Measure the gain of a norm and whether it subtracts the mean; raise `ModelError` for any other module."""
    exact = copy.deepcopy(norm).double()
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2, width, generator=generator, dtype=torch.float64)
    probes = probes + probes.sign()  # no entry is near zero
    probes = probes - probes.mean(dim=1, keepdim=True)
    probes = (_PROBE_SIZE * (probes / probes.square().mean(dim=1, keepdim=True).sqrt())).to(device)

    def odd(x: Tensor) -> Tensor:  # the odd part has no shift
        return ((exact(x[None, None]) - exact(-x[None, None])) / 2)[0, 0].double()

    gain = odd(probes[0]) / (probes[0] / _PROBE_SIZE)
    moved = probes[1] + 3 * _PROBE_SIZE
    for centered in (False, True):
        kept = moved - moved.mean() if centered else moved
        expected = gain * kept / kept.square().mean().sqrt()
        if torch.allclose(odd(moved), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())):
            return gain.float(), centered
    raise ModelError(
        f"Model {name}: {type(norm).__name__} before the unembedding is neither a LayerNorm nor an RMSNorm; "
        "set features.n_promoted=0."
    )
