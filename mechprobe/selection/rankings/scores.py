"""Values of every feature on the gained samples: the paper's Score and joint attribution.

G_t = {x : base wrong, tuned right} on task t. On the tokens of prompt and tuned response, pooled over positions and
then averaged over G_t:

* Score_k^t = mean (f_k^tuned − f_k^base), activations under the recorded read-out (arXiv 2604.25011);
* J_k^t = mean f_k ‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂, f under the joint read-out (ours,
  DESIGN.md section 4): the part of feature k in the difference of the two residual streams.

The rankings by attribution are `mechprobe.selection.rankings.attribution`'s.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import ReadSample
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.files import write_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import progress
from mechprobe.selection.config import Ranking, SelectConfig
from mechprobe.selection.rules import Values
from mechprobe.selection.stability import SampleValues
from mechprobe.types import Site
from sae_training import Crosscoder

RANKINGS: tuple[Ranking, ...] = ("joint", "score", "ig", "relie")


@dataclass(frozen=True)
class Scores:
    """Values of every feature on every selection task.

    Attributes:
        tasks: Task names, the first axis of ``score``, ``joint``, ``ig`` and ``relie``.
        n_gained: Samples of G_t read, per task.
        score: ``[task d_sae]``, the paper's Score.
        joint: ``[task d_sae]``, J.
        density: ``[d_sae]``, share of the pooled positions on which a feature is active (joint read-out).
        decoder_norm: ``[d_sae]``, L2 norms in the models' own units, summed over models.
        mean_act: ``[d_sae]``, mean activation over the positions where a feature is active (joint read-out).
        mean_difference: ``[d_model]``, mean over the pooled positions of r_tuned − r_base, in the models' own units:
            the one-vector baseline of the interventions.
        last_difference: ``[d_model]``, the same at the last prompt position alone.
        ig: ``[task d_sae]``, integrated gradients; None where they were not asked for.
        relie: ``[task d_sae]``, the indirect effect in the tuned model weighted by RelIE; None likewise.
        fires: ``[task d_sae]``, whether a feature is active on any pooled position of a task's samples, under the joint
            read-out or the recorded one of base or tuned; None in scores of a version that did not keep it.
    """

    tasks: tuple[str, ...]
    n_gained: tuple[int, ...]
    score: Values
    joint: Values
    density: Values
    decoder_norm: Values
    mean_act: Values
    mean_difference: Values
    last_difference: Values
    ig: Values | None = None
    relie: Values | None = None
    fires: NDArray[np.bool_] | None = None

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        """The rankings that there are values of."""
        return tuple(name for name in RANKINGS if getattr(self, name) is not None)

    @property
    def live(self) -> Bool[np.ndarray, " d_sae"]:
        """``[d_sae]`` bool: active somewhere on the pooled positions, and with a decoder."""
        return (self.density > 0) & (self.decoder_norm > 0)

    def values(self, ranking: Ranking) -> Values:
        """The values of a ranking, ``[task d_sae]``.

        Raises:
            SelectionError: The ranking needs gradients and was not asked for when the features were scored.
        """
        found = getattr(self, ranking)
        if found is None:
            raise SelectionError(
                f"The selection holds no values by {ranking}; run `mechprobe select --ranking {ranking}`, or set "
                f'select.also=["{ranking}"], first.'
            )
        return found

    def save(self, path: Path) -> None:
        """Write safetensors."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        kept = {name: np.ascontiguousarray(values) for name, values in arrays.items() if values is not None}
        gained = dict(zip(self.tasks, self.n_gained, strict=True))
        write_bytes(
            path, save(kept, metadata={"gained": json.dumps(gained)})
        )  # one entry: safetensors shuffles several

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata()
        if "gained" in metadata:
            gained = json.loads(metadata["gained"])
        else:  # as it was written before
            counts = (int(n) for n in metadata["n"].split())
            gained = dict(zip(metadata["tasks"].split("\n"), counts, strict=True))
        return cls(tasks=tuple(gained), n_gained=tuple(gained.values()), **load_file(path))


_ARRAYS = (
    "score", "joint", "density", "decoder_norm", "mean_act", "mean_difference", "last_difference", "ig", "relie", "fires",
)  # fmt: skip


@torch.no_grad()
def score_features(
    crosscoder: Crosscoder,
    family: ModelFamily,
    gained: Mapping[str, Sequence[ReadSample]],
    *,
    site: Site,
    config: SelectConfig,
) -> tuple[Scores, SampleValues | None]:
    """Score and J of every feature on the given samples.

    Args:
        crosscoder: The dictionary.
        family: Its models.
        gained: Task → what is read; ``kept`` positions are pooled.
        site: Where the crosscoder reads.
        config: Read-out, pooling and batch size.

    Returns:
        The scores, and the values of every sample under ``config.ranking`` where that is ``joint`` or ``score``.
    """
    models = family.subset(*crosscoder.model_names)
    tally = _Tally(crosscoder, models, config, len(gained))
    means: dict[str, list[Values]] = {"score": [], "joint": []}
    kept: list[np.ndarray] = []
    with progress(sum(map(len, gained.values())), "scoring features", unit="samples") as advance:
        for row, (task, samples) in enumerate(gained.items()):
            found: dict[str, list[Tensor]] = {"score": [], "joint": []}
            for x, mask, end in _residual_batches(models, samples, site, config):
                for name, values in tally.add(row, x, mask, end).items():
                    found[name].append(values)
                advance(len(mask), task=task)
            for name, parts in found.items():
                rows = torch.cat(parts)
                means[name].append(rows.double().mean(0).numpy() * (tally.shift if name == "joint" else 1.0))
                if name == config.ranking:
                    shift = torch.from_numpy(tally.shift).float() if name == "joint" else 1.0
                    kept.append((rows * shift).numpy()[None])
    counts = tuple(len(samples) for samples in gained.values())
    scores = tally.scores(tuple(gained), counts, np.stack(means["score"]), np.stack(means["joint"]))
    return scores, SampleValues(tuple(kept)) if kept else None


class _Tally:
    """What is summed over all tasks, and the pooled values of a batch."""

    def __init__(self, crosscoder: Crosscoder, models: ModelFamily, config: SelectConfig, n_tasks: int) -> None:
        self.crosscoder, self.config = crosscoder, config
        self.own = Readout(config.readout, config.near)
        self.shift = decoder_shift(crosscoder, base=config.base, tuned=config.tuned).numpy()
        self.active, self.total = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
        self.difference, self.last = torch.zeros(2, models.d_model[config.tuned], dtype=torch.float64)
        self.n_positions = 0
        self.fires = torch.zeros(n_tasks, crosscoder.d_sae, dtype=torch.bool)

    def add(
        self, task: int, x: Mapping[str, Tensor], mask: Bool[Tensor, "sample pos"], end: Tensor
    ) -> dict[str, Float[Tensor, "sample d_sae"]]:
        """Pooled read-out differences and joint activations of the samples of a batch of task number ``task``."""
        base, tuned = self.config.base, self.config.tuned
        joint = Readout("joint").feature_acts(self.crosscoder, x, tuned)
        own, other = (self.own.feature_acts(self.crosscoder, x, model) for model in (tuned, base))
        gap = own - other
        moved = x[tuned] - x[base]
        kept = joint[mask]
        self.active += (kept > 0).double().sum(0).cpu()
        self.total += kept.double().sum(0).cpu()
        for acts in (kept, own[mask], other[mask]):
            self.fires[task] |= (acts > 0).any(0).cpu()
        self.difference += moved[mask].double().sum(0).cpu()
        self.last += moved[torch.arange(len(end), device=end.device), end].double().sum(0).cpu()
        self.n_positions += int(mask.sum())
        pooling = self.config.pooling
        return {"score": _pool(gap, mask, pooling).cpu(), "joint": _pool(joint, mask, pooling).cpu()}

    def scores(self, tasks: tuple[str, ...], counts: tuple[int, ...], score: Values, joint: Values) -> Scores:
        """Everything that is kept of a selection's samples."""
        return Scores(
            tasks=tasks,
            n_gained=counts,
            score=score,
            joint=joint,
            density=(self.active / max(1, self.n_positions)).numpy(),
            decoder_norm=self.crosscoder.decoder_norm(2).sum(1).double().cpu().numpy(),
            mean_act=(self.total / self.active.clamp(min=1)).numpy(),
            mean_difference=(self.difference / max(1, self.n_positions)).numpy(),
            last_difference=(self.last / sum(counts)).numpy(),
            fires=self.fires.numpy(),
        )


def decoder_shift(crosscoder: Crosscoder, *, base: str, tuned: str) -> Float[Tensor, " d_sae"]:
    """‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂ in the models' own units."""
    first, second = crosscoder.own_decoder(tuned), crosscoder.own_decoder(base)
    if first.shape != second.shape:
        raise ConfigError(f"Models {tuned} and {base} differ in width; joint attribution needs equal widths.")
    return (first - second).double().norm(dim=1).cpu()


def _pool(
    values: Float[Tensor, "batch pos d_sae"], mask: Bool[Tensor, "batch pos"], pooling: str
) -> Float[Tensor, "batch d_sae"]:
    if pooling == "max":
        largest = values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
        return largest.where(mask.any(dim=1, keepdim=True), torch.zeros_like(largest))
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _residual_batches(
    models: ModelFamily, samples: Sequence[ReadSample], site: Site, config: SelectConfig
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Yield ``({model: [batch pos d_model]}, kept [batch pos], last prompt position [batch])``."""
    pad_id, device = int(str(models.tokenizer.pad_token_id)), next(iter(models)).device
    for batch in length_batches([len(sample.ids) for sample in samples], config.batch_size):
        chosen = [samples[index] for index in batch]
        tokens, attention = left_pad([sample.ids for sample in chosen], pad_id, device)
        width = tokens.shape[1]
        keep = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, sample in enumerate(chosen):
            keep[row, width - len(sample.ids) :] = torch.tensor(sample.kept)
        end = torch.tensor([width - sum(sample.response) - 1 for sample in chosen], device=tokens.device)
        x = {model.name: residuals_plain(model, tokens, attention, [site])[site].float() for model in models}
        yield x, keep.to(tokens.device), end
