"""Complement edits: what is left of the difference between the models without the set (completeness of the set)."""

from collections.abc import Mapping

from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput

WHOLE_WITHOUT = "whole difference minus the set"
OTHER_FEATURES = "every feature but the set"


def complement_rivals(_n_features: int, _d_model: int) -> list[Rival]:
    """The whole difference without what the set writes, and the transplant of every other feature."""
    return [
        Rival(WHOLE_WITHOUT, None, _whole_without, set_kind="complement", reads_set=True),
        Rival(OTHER_FEATURES, None, _others, set_kind="complement", reads_set=True),
    ]


def _whole_without(given: RivalInput) -> Rewrite:
    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid = x[given.host]
        return x[given.donor].to(resid) - (given.selected(x) - resid)

    return rewrite


def _others(given: RivalInput) -> Rewrite:
    """The transplant of every feature outside the set."""
    return given.others()
