"""Telling when a training step is not finite: at every step on a CPU, from a latch on the device elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.step import StepOutput


class Latch:
    """Remembers on the device, without the host waiting for it, the first step that was not finite.

    From that step on ``found`` is 1, which makes a fused Adam leave the weights as they are.

    Attributes:
        found: 0, or 1 from the first such step on.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), dtype=torch.float32, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._input = torch.zeros((), dtype=torch.bool, device=device)

    def watch(self, outputs: Sequence[StepOutput], gradient_norm: Tensor, step: int) -> None:
        """Look at what a step computed; ``step`` counts from 1."""
        first_here = ~torch.isfinite(_watched(outputs, gradient_norm)).all() & (self._step == 0)
        of_input = ~torch.stack([torch.isfinite(output.x).all() for output in outputs]).all()
        self._input |= first_here & of_input
        self._step += first_here * step
        self.found.copy_((self._step > 0).float())

    def kept(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or ``old`` after a step that was not finite."""
        return torch.where(self.found > 0, old, new)

    def look(self, lr: float) -> None:
        """Raise for the step remembered; this waits for the device."""
        step, of_input = (int(value) for value in torch.stack((self._step, self._input.long())).tolist())
        if not step:
            return
        if of_input:
            raise SaeTrainingError(
                f"the activations of step {step} have values that are not finite; remove such tokens from the stream."
            )
        raise SaeTrainingError(
            f"step {step} is not finite although its activations are; lower lr (now {lr:g}) or look for outliers in "
            "the activations."
        )


def require_finite_step(
    outputs: Sequence[StepOutput], gradient_norm: Tensor, raw: Sequence[Tensor], *, step: int, lr: float
) -> None:
    """Refuse a step that is not finite at once; says whether the activations (``raw``) or the training is at fault."""
    values = _watched(outputs, gradient_norm).tolist()
    if all(map(math.isfinite, values)):
        return
    first_batch = (step - 1) * len(raw)
    for number, batch in enumerate(raw):
        require_finite(batch, f"batch {first_batch + number}")
    gradient, loss, decoder = values[:3]
    raise SaeTrainingError(
        f"step {step} is not finite (loss {loss:g}, gradient norm {gradient:g}, sum of decoder norms {decoder:g}) "
        f"although the batch is; lower lr (now {lr:g}) or look for outliers in the activations."
    )


def _watched(outputs: Sequence[StepOutput], gradient_norm: Tensor) -> Tensor:
    return torch.stack([gradient_norm, *(value for output in outputs for value in (output.loss, output.norm_sum))])


def require_finite(batch: Tensor, name: str) -> None:
    """Refuse a batch with NaN or infinite numbers; says how many and where the first is."""
    bad = ~torch.isfinite(batch)
    if bool(bad.any()):
        row, column = (int(place) for place in bad.nonzero()[0])
        raise SaeTrainingError(
            f"{name} has {int(bad.sum())} values that are not finite, the first at token {row}, column {column} "
            f"({float(batch[row, column])}); remove such tokens from the stream."
        )
