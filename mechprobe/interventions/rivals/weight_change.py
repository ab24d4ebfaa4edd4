"""The change of every block's weights between the models, cut to a few singular directions of every matrix."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput
from mechprobe.models.blocks import find_blocks
from mechprobe.types import Site

RANKS = (1, 10)


def weight_rivals(_n_features: int, _d_model: int) -> list[Rival]:
    """Ranks 1 and 10 in every matrix of the blocks up to the site. Their change of the residual has no bound in rank."""
    return [
        Rival(f"weight change, rank {rank} a matrix", None, _unchanged, reads_donor=False, weight_rank=rank)
        for rank in RANKS
    ]


def _unchanged(given: RivalInput) -> Rewrite:
    """The residual itself: the weights make the change."""
    return lambda x: x[given.host]


@contextmanager
def weight_change(host: nn.Module, donor: nn.Module, site: Site, rank: int) -> Iterator[None]:
    """Run ``host`` with the first ``rank`` singular directions of W_donor − W_host added to every matrix up to the site.

    Only blocks up to the site's are changed. Vectors, such as biases and the weights of norms, are taken from the donor whole. The
    host's own weights are put back on every exit.

    Raises:
        ModelError: The models' blocks have different parameters, or weights that are not in memory.
    """
    blocks, others = find_blocks(host)[: site.layer + 1], find_blocks(donor)[: site.layer + 1]
    own, other = dict(blocks.named_parameters()), dict(others.named_parameters())
    shapes, other_shapes = ({name: value.shape for name, value in each.items()} for each in (own, other))
    if shapes != other_shapes:
        raise ModelError("The blocks of the two models have different parameters, so their weight change has no rank.")
    if any(value.is_meta for value in [*own.values(), *other.values()]):
        raise ModelError("Weights that are offloaded cannot be changed; leave 'weights' out of intervene.rivals.")
    kept = {name: value.detach().clone() for name, value in own.items()}
    try:
        with torch.no_grad():
            for name, value in own.items():
                value.add_(_cut(other[name].detach().to(value.device) - value, rank).to(value.dtype))
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(kept[name])


def _cut(change: Tensor, rank: int) -> Tensor:
    """The best approximation of the last two dimensions by a matrix of this rank; a vector stays whole."""
    if change.ndim < 2 or rank >= min(change.shape[-2:]) or not bool(change.any()):
        return change
    left, values, right = torch.linalg.svd(change.float(), full_matrices=False)
    return (left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :]
