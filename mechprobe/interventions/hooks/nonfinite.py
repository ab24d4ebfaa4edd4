"""Telling that an edit leaves a model without finite numbers, with one look at the device for each forward call."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechprobe.errors import ModelError


@dataclass(frozen=True)
class _Seen:
    what: str
    before: Tensor
    after: Tensor
    total: Tensor


class NonFiniteCheck:
    """Remembers the edits of one forward call and looks at all of them when it ends.

    A sum that is finite has finite terms, so sums are all that is read while nothing is wrong. A model whose residual
    was not finite before the edit (at padding, for instance) is no error here.
    """

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def watch(self, what: str, before: Tensor, after: Tensor) -> None:
        """Note a residual ``[batch pos d_model]`` before and after an edit, which ``what`` names; nothing is waited for."""
        after = after.detach()
        self._seen.append(_Seen(what, before.detach(), after, after.sum(dtype=torch.float32)))

    def look(self, logits: Tensor | None = None) -> None:
        """Look at the edits noted since the last look, and at what came of them; then forget them.

        Args:
            logits: ``[batch pos vocab]``; the last position is looked at, which all others feed.

        Raises:
            ModelError: An edit made a finite residual something else, or the logits hold NaN.
        """
        seen, self._seen = self._seen, []
        if not seen:
            return
        device = seen[0].total.device
        sums = [entry.total.to(device) for entry in seen]
        last = None if logits is None else logits[:, -1].detach()
        if last is not None:
            sums.append(last.sum(dtype=torch.float32).to(device))
        if all(torch.isfinite(torch.stack(sums)).tolist()):
            return
        for entry in seen:
            _require_finite(entry)
        if last is not None and bool(torch.isnan(last).any()):
            raise ModelError(
                f"{' and '.join(entry.what for entry in seen)} leaves the model without numbers: its logits are NaN; "
                "lower the strength, or look whether the model gives NaN by itself."
            )

    def forget(self) -> None:
        """Drop what was noted."""
        self._seen = []


def _require_finite(entry: _Seen) -> None:
    made = ~torch.isfinite(entry.after) & torch.isfinite(entry.before)
    if bool(made.any()):
        row, position = (int(place) for place in made.nonzero()[0][:2])
        raise ModelError(
            f"{entry.what} gives values that are not finite (first in row {row}, at position {position} of the call); "
            "lower its strength, or look for outliers in the residuals that it reads."
        )
