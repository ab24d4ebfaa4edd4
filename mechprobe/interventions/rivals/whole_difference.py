"""The whole difference between the models on every token, at the norm of the change that the set makes there."""

from collections.abc import Mapping

from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput, at_norm_of


def whole_rivals(_n_features: int, d_model: int) -> list[Rival]:
    """One rival of full rank."""
    return [Rival("whole difference at the norm of the set", d_model, _build, reads_set=True)]


def _build(given: RivalInput) -> Rewrite:
    def whole(x: Mapping[str, Tensor]) -> Tensor:
        return x[given.donor].to(x[given.host])

    return at_norm_of(given.selected, whole, given.host)
