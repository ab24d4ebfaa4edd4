"""Values of every feature under every ranking, as ``scores.safetensors`` keeps them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from mechprobe.errors import SelectionError
from mechprobe.files import write_bytes
from mechprobe.selection.config import Ranking
from mechprobe.selection.controls import Covariates

RANKINGS: tuple[Ranking, ...] = ("joint", "score", "ig", "relie")


@dataclass(frozen=True)
class Scores:
    """Values of every feature on every selection task.

    Attributes:
        tasks: Task names, the first axis of the values.
        n_gained: Samples of G_t that were read, per task; 0 where other samples were read for want of gained ones.
        score: The Score of arXiv 2604.25011.
        joint: Joint attribution J.
        density: Share of the pooled positions on which a feature is active (joint read-out).
        decoder_norm: L2 norm in the models' own units, summed over models.
        mean_act: Mean activation over the positions where a feature is active (joint read-out).
        mean_difference: Mean over the pooled positions of r_tuned − r_base, in the models' own units. The interventions
            use it as a baseline of one vector.
        last_difference: The same at the last prompt position alone.
        fires: Whether a feature is active on any pooled position of a task's samples, under the joint read-out or under
            the configured read-out of base or of the tuned model.
        ig: Integrated gradients; None if they were not computed.
        relie: Indirect effect in the tuned model, weighted by RelIE; None if it was not computed.
        swap_write: Mean norm that a transplant of each feature writes under the ``swap`` read-out, as J is under ``joint``; None
            if a model of another width forbids that read-out, or in a selection of an earlier version.
    """

    tasks: tuple[str, ...]
    n_gained: tuple[int, ...]
    score: Float[ndarray, "task d_sae"]
    joint: Float[ndarray, "task d_sae"]
    density: Float[ndarray, " d_sae"]
    decoder_norm: Float[ndarray, " d_sae"]
    mean_act: Float[ndarray, " d_sae"]
    mean_difference: Float[ndarray, " d_model"]
    last_difference: Float[ndarray, " d_model"]
    fires: Bool[ndarray, "task d_sae"]
    ig: Float[ndarray, "task d_sae"] | None = None
    relie: Float[ndarray, "task d_sae"] | None = None
    swap_write: Float[ndarray, "task d_sae"] | None = None

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        """Rankings whose values were computed."""
        return tuple(name for name in RANKINGS if getattr(self, name) is not None)

    @property
    def covariates(self) -> Covariates:
        """The quantities on which the random sets of edits of one model are matched."""
        return Covariates(self.density, self.decoder_norm, self.mean_act)

    @property
    def transplant_covariates(self) -> Covariates:
        """The quantities on which the random sets of transplants are matched under the joint read-out."""
        return self._writing(self.joint)

    @property
    def swap_covariates(self) -> Covariates:
        """The same under ``swap``.

        Raises:
            SelectionError: The selection does not hold what a transplant writes there.
        """
        if self.swap_write is None:
            raise SelectionError(
                "The selection does not hold what transplants write under the swap read-out, on which their random sets are "
                "matched; run `mechprobe select --force` first, or set intervene.transplant_readout=joint."
            )
        return self._writing(self.swap_write)

    def _writing(self, norm: Float[ndarray, "task d_sae"]) -> Covariates:
        """Covariates with the norm that a transplant writes, the mean over the selection tasks."""
        return Covariates(self.density, self.decoder_norm, self.mean_act, norm.mean(axis=0, dtype=np.float64))

    @property
    def live(self) -> Bool[ndarray, " d_sae"]:
        """Features that are active somewhere on the pooled positions and have a decoder."""
        return self.covariates.live

    def values(self, ranking: Ranking) -> Float[ndarray, "task d_sae"]:
        """The values of a ranking.

        Raises:
            SelectionError: The ranking was not computed when the features were scored.
        """
        found = getattr(self, ranking)
        if found is None:
            raise SelectionError(
                f"The selection holds no values by {ranking}; run `mechprobe select --ranking {ranking}`, or set "
                f'select.also=["{ranking}"], first.'
            )
        return found

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, ndarray)}
        present = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        gained = dict(zip(self.tasks, self.n_gained, strict=True))
        # The metadata has one entry, because safetensors writes several in random order.
        write_bytes(path, save(present, metadata={"gained": json.dumps(gained)}))

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read a file that `save` wrote."""
        with safe_open(str(path), framework="numpy") as file:
            gained = json.loads(file.metadata()["gained"])
        return cls(tasks=tuple(gained), n_gained=tuple(gained.values()), **load_file(path))
