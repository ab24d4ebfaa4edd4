"""Detects edits that leave a model without finite numbers, with one device synchronization per forward call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechprobe.errors import ModelError


@dataclass(frozen=True)
class _Watched:
    what: str
    before: Tensor
    after: Tensor
    total: Tensor


class NonFiniteCheck:
    """Records the edits of one forward call and checks all of them when the call ends.

    A finite sum has finite terms, so only sums are read while everything is finite. A residual that is not finite before the
    edit, for instance at padding, is not an error.
    """

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def watch(self, what: str, before: Tensor, after: Tensor) -> None:
        """Record the residual ``[batch pos d_model]`` before and after an edit, without waiting for the device.

        Args:
            what: Name of the edit in messages.
            before: The residual that enters the edit.
            after: The residual that leaves it.
        """
        after = after.detach()
        self._watched.append(_Watched(what, before.detach(), after, after.sum(dtype=torch.float32)))

    def check(self, logits: Tensor | None = None) -> None:
        """Check the edits recorded since the last check and the logits that follow from them; then forget them.

        Args:
            logits: ``[batch pos vocab]``; only the last position is read, which depends on all others.

        Raises:
            ModelError: An edit made a finite residual non-finite, or the logits contain NaN.
        """
        watched, self._watched = self._watched, []
        if not watched:
            return
        device = watched[0].total.device
        sums = [entry.total.to(device) for entry in watched]
        last = None if logits is None else logits[:, -1].detach()
        if last is not None:
            sums.append(last.sum(dtype=torch.float32).to(device))
        if all(torch.isfinite(torch.stack(sums)).tolist()):
            return
        for entry in watched:
            _require_finite(entry)
        if last is not None and bool(torch.isnan(last).any()):
            raise ModelError(
                f"The logits are NaN after this edit: {' and '.join(entry.what for entry in watched)}. Lower the strength, or "
                "check whether the model gives NaN without any edit."
            )

    def forget(self) -> None:
        """Drop the recorded edits."""
        self._watched = []


def _require_finite(entry: _Watched) -> None:
    made = ~torch.isfinite(entry.after) & torch.isfinite(entry.before)
    if bool(made.any()):
        row, position = (int(place) for place in made.nonzero()[0][:2])
        raise ModelError(
            f"{entry.what} gives values that are not finite (first in row {row}, at position {position} of the call); "
            "lower its strength, or look for outliers in the residuals that it reads."
        )
