"""Detection of training steps that are not finite: in every step on a CPU, and by a flag on the device elsewhere."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division
from sae_training.step import StepOutput


class NonFiniteCheck:
    """Records the first step that is not finite on the device, so that the host does not wait for it.

    Attributes:
        found: 0, and 1 from that step on, which makes a fused Adam leave the weights unchanged.
    """

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), dtype=torch.float32, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._input = torch.zeros((), dtype=torch.bool, device=device)

    def watch(
        self, outputs: Sequence[StepOutput], gradient_norm: Tensor, step: int, division: Division = ALONE
    ) -> None:
        """Check the values of a step; ``step`` counts from 1."""
        first_here = ~torch.isfinite(_watched(outputs, gradient_norm)).all() & (self._step == 0)
        of_input = ~torch.stack([torch.isfinite(output.x).all() for output in outputs]).all()
        if division.by_tokens:
            of_input = division.sum_(of_input.float()) > 0
        self._input |= first_here & of_input
        self._step += first_here * step
        self.found.copy_((self._step > 0).float())

    def guarded(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or ``old`` if a step was not finite."""
        return torch.where(self.found > 0, old, new)

    def require_finite(self, lr: float) -> None:
        """Wait for the device, and raise `SaeTrainingError` if a step was not finite."""
        step, of_input = (int(value) for value in torch.stack((self._step, self._input.long())).tolist())
        if not step:
            return
        if of_input:
            raise SaeTrainingError(
                f"the activations of step {step} contain values that are not finite; remove these tokens from the stream."
            )
        raise SaeTrainingError(
            f"step {step} is not finite, although its activations are; lower lr (now {lr:g}) or check the activations "
            "for outliers."
        )


def require_finite_step(
    outputs: Sequence[StepOutput], gradient_norm: Tensor, raw: Sequence[Tensor], *, step: int, lr: float
) -> None:
    """Raise `SaeTrainingError` if a step is not finite.

    Args:
        outputs: What the step computed for each batch.
        gradient_norm: L2 norm of the gradient of all weights.
        raw: Activations of each batch; the message says whether they or the training caused the fault.
        step: Number of the step, from 1.
        lr: Learning rate, for the message.
    """
    values = _watched(outputs, gradient_norm).tolist()
    if all(map(math.isfinite, values)):
        return
    first_batch = (step - 1) * len(raw)
    for number, batch in enumerate(raw):
        require_finite(batch, f"batch {first_batch + number}")
    gradient, loss, decoder = values[:3]
    raise SaeTrainingError(
        f"step {step} is not finite (loss {loss:g}, gradient norm {gradient:g}, sum of decoder norms {decoder:g}) "
        f"although the batch is; lower lr (now {lr:g}) or check the activations for outliers."
    )


def _watched(outputs: Sequence[StepOutput], gradient_norm: Tensor) -> Tensor:
    return torch.stack([gradient_norm, *(value for output in outputs for value in (output.loss, output.norm_sum))])


def require_finite(batch: Tensor, name: str) -> None:
    """Raise `SaeTrainingError` if a batch has NaN or infinite values; the message says how many and where."""
    bad = ~torch.isfinite(batch)
    if bool(bad.any()):
        row, column = (int(place) for place in bad.nonzero()[0])
        raise SaeTrainingError(
            f"{name} has {int(bad.sum())} values that are not finite, the first at token {row}, column {column} "
            f"({float(batch[row, column])}); remove these tokens from the stream."
        )
