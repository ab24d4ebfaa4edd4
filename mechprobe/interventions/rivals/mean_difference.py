"""The mean difference between the models as one vector, at a dose that the selection half chooses.

This is activation addition (arXiv 2308.10248) along the difference in means, the strongest simple steering of AxBench (arXiv
2501.17148).
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.rivals.rival import Rival, RivalInput, placed

PLACES = {"every token": "", "last prompt token": "last_prompt_token", "response tokens": "response"}
"""Where the mean is taken and the vector is added → positions of the edit."""


def mean_rivals(_n_features: int, _d_model: int) -> list[Rival]:
    """One vector at every token, at the last prompt token, and at response tokens."""
    return [
        Rival(f"mean difference, {place}, best dose", 1, partial(_build, place), where, tuned=True, reads_donor=False)
        for place, where in PLACES.items()
    ]


def _build(place: str, given: RivalInput) -> Rewrite:
    vector = given.sign * given.dose * given.fit.means[place]

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        resid = x[given.host]
        return resid + placed(vector, resid)

    return rewrite
