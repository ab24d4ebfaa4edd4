"""Residuals of prompts for the linear probes: one vector per prompt and site, read in batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.data.encoding import Ids
from mechprobe.drift.probe.config import Position
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site

MAX_BYTES = 256 * 2**20
"""Most memory for the residuals of some sites; further sites take another pass."""


def prompt_residuals(
    model: LanguageModel, prompts: Sequence[Ids], sites: Sequence[Site], positions: Sequence[Position], batch_size: int
) -> Iterator[tuple[Site, Position, Float[ndarray, "prompt d_model"]]]:
    """Yield the residuals of all prompts at every site, for the last token and the mean over the tokens.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        sites: Where to read.
        positions: ``last``, ``mean`` or both.
        batch_size: Prompts of the mean length in one forward pass.
    """
    room = max(1, MAX_BYTES // (4 * len(prompts) * model.d_model * len(positions)))
    lengths = [len(ids) for ids in prompts]
    tokens = max(max(lengths), batch_size * sum(lengths) // len(lengths))
    for start in range(0, len(sites), room):
        chosen = list(sites[start : start + room])
        found: dict[tuple[Site, Position], ndarray] = {
            (site, place): np.empty((len(prompts), model.d_model), np.float32) for site in chosen for place in positions
        }
        for batch in forward_batches(lengths, tokens):
            ids, mask = padded([prompts[index] for index in batch], model.pad_id)
            residuals = residuals_plain(model, ids.to(model.input_device), mask, chosen)
            for (site, place), rows in found.items():
                rows[batch] = _pooled(residuals[site].float().cpu(), mask, place).numpy()
        for (site, place), rows in found.items():
            yield site, place, rows


def _pooled(
    residuals: Float[torch.Tensor, "batch pos d_model"], mask: torch.Tensor, place: Position
) -> Float[torch.Tensor, "batch d_model"]:
    if place == "last":
        return residuals[torch.arange(len(residuals)), mask.sum(dim=1) - 1]
    weights = mask[:, :, None].to(residuals)
    return (residuals * weights).sum(dim=1) / weights.sum(dim=1)
