"""Values of every feature on the gained samples: the paper's Score and joint attribution.

G_t = {x : base wrong, tuned right} on task t. On the tokens of prompt and tuned response, pooled over positions and
then averaged over G_t:

* Score_k^t = mean (f_k^tuned − f_k^base), activations under the recorded read-out (arXiv 2604.25011);
* J_k^t = mean f_k ‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂, f under the joint read-out (ours,
  DESIGN.md section 4): the part of feature k in the difference of the two residual streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.numpy import load_file, save
from torch import Tensor

from mechprobe.artifacts import write_bytes
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.features.config import Ranking, SelectConfig
from mechprobe.features.readout import Readout
from mechprobe.features.selection import Values
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import progress
from mechprobe.records import Outcomes
from mechprobe.types import Site
from sae_training import Crosscoder


@dataclass(frozen=True)
class Scores:
    """Values of every feature on every selection task.

    Attributes:
        tasks: Task names, the first axis of ``score`` and ``joint``.
        n_gained: Samples of G_t read, per task.
        score: ``[task d_sae]``, the paper's Score.
        joint: ``[task d_sae]``, J.
        density: ``[d_sae]``, share of the pooled positions on which a feature is active (joint read-out).
        decoder_norm: ``[d_sae]``, L2 norms in the models' own units, summed over models.
        mean_act: ``[d_sae]``, mean activation over the positions where a feature is active (joint read-out).
        mean_difference: ``[d_model]``, mean over the pooled positions of r_tuned − r_base, in the models' own units:
            the one-vector baseline of the interventions.
        last_difference: ``[d_model]``, the same at the last prompt position alone.
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

    def values(self, ranking: Ranking) -> Values:
        """The values of a ranking."""
        return self.joint if ranking == "joint" else self.score

    def save(self, path: Path) -> None:
        """Write safetensors."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        metadata = {"tasks": "\n".join(self.tasks), "n": " ".join(map(str, self.n_gained))}
        write_bytes(path, save(arrays, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata()
        counts = tuple(int(n) for n in metadata["n"].split())
        return cls(tasks=tuple(metadata["tasks"].split("\n")), n_gained=counts, **load_file(path))


_ARRAYS = ("score", "joint", "density", "decoder_norm", "mean_act", "mean_difference", "last_difference")


@torch.no_grad()
def score_features(
    crosscoder: Crosscoder,
    family: ModelFamily,
    outcomes: Outcomes,
    gained: Mapping[str, Sequence[str]],
    *,
    site: Site,
    config: SelectConfig,
) -> Scores:
    """Score and J of every feature on the given samples."""
    names = crosscoder.model_names
    models = family.subset(*names)
    base, tuned = config.base, config.tuned
    swap = Readout(config.readout, config.near)
    shift = decoder_shift(crosscoder, base=base, tuned=tuned)
    active, total = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
    difference, last = torch.zeros(2, models.d_model[tuned], dtype=torch.float64)
    n_positions = 0
    score_rows, joint_rows = [], []
    with progress(sum(map(len, gained.values())), "scoring features", unit="samples") as advance:
        for task, ids in gained.items():
            sums = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
            for x, mask, end in _residual_batches(models, outcomes, task, ids, site, config):
                joint = Readout("joint").feature_acts(crosscoder, x, tuned)
                gap = swap.feature_acts(crosscoder, x, tuned) - swap.feature_acts(crosscoder, x, base)
                sums[0] += _pool(gap, mask, config.pooling).double().sum(0).cpu()
                sums[1] += _pool(joint, mask, config.pooling).double().sum(0).cpu()
                active += (joint[mask] > 0).double().sum(0).cpu()
                total += joint[mask].double().sum(0).cpu()
                difference += (x[tuned] - x[base])[mask].double().sum(0).cpu()
                rows = torch.arange(len(end), device=end.device)
                last += (x[tuned] - x[base])[rows, end].double().sum(0).cpu()
                n_positions += int(mask.sum())
                advance(len(mask), task=task)
            score_rows.append((sums[0] / len(ids)).numpy())
            joint_rows.append((sums[1] / len(ids) * shift).numpy())
    return Scores(
        tasks=tuple(gained),
        n_gained=tuple(len(ids) for ids in gained.values()),
        score=np.stack(score_rows),
        joint=np.stack(joint_rows),
        density=(active / max(1, n_positions)).numpy(),
        decoder_norm=crosscoder.decoder_norm(2).sum(1).double().cpu().numpy(),
        mean_act=(total / active.clamp(min=1)).numpy(),
        mean_difference=(difference / max(1, n_positions)).numpy(),
        last_difference=(last / sum(map(len, gained.values()))).numpy(),
    )


def decoder_shift(crosscoder: Crosscoder, *, base: str, tuned: str) -> Float[Tensor, " d_sae"]:
    """‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂ in the models' own units."""
    scale = crosscoder.column_scale()
    decoder = crosscoder.decoder.detach() * scale
    first, second = decoder[:, crosscoder.columns(tuned)], decoder[:, crosscoder.columns(base)]
    if first.shape != second.shape:
        raise ConfigError(f"Models {tuned} and {base} differ in width; joint attribution needs equal widths.")
    return (first - second).double().norm(dim=1).cpu()


def _pool(
    values: Float[Tensor, "batch pos d_sae"], mask: Bool[Tensor, "batch pos"], pooling: str
) -> Float[Tensor, "batch d_sae"]:
    if pooling == "max":
        return values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _residual_batches(
    models: ModelFamily, outcomes: Outcomes, task: str, ids: Sequence[str], site: Site, config: SelectConfig
) -> Any:
    """Yield ``({model: [batch pos d_model]}, mask [batch pos], last prompt position [batch])`` on prompt + tuned response."""
    tokenizer = models.tokenizer
    special = set(tokenizer.all_special_ids)
    rows, starts = [], []
    for sample_id in ids:
        if sample_id not in outcomes.samples:
            raise SelectionError(f"The outcomes do not hold the prompt of sample {sample_id}; evaluate again.")
        prompt = tokenizer(outcomes.samples[sample_id].prompt).input_ids
        rows.append([*prompt, *outcomes.record(config.tuned, task, sample_id).response_ids])
        starts.append(len(prompt))
    for batch in length_batches([len(row) for row in rows], config.batch_size):
        tokens, attention = left_pad(
            [rows[i] for i in batch], int(str(tokenizer.pad_token_id)), next(iter(models)).device
        )
        keep = attention.bool() & ~torch.isin(tokens, torch.tensor(sorted(special), device=tokens.device))
        for row, index in enumerate(batch):
            first_response = tokens.shape[1] - len(rows[index]) + starts[index]
            if config.positions == "prompt":
                keep[row, first_response:] = False
            elif config.positions == "response":
                keep[row, :first_response] = False
        x = {model.name: residuals_plain(model, tokens, attention, [site])[site].float() for model in models}
        width = tokens.shape[1]
        end = torch.tensor([width - len(rows[i]) + starts[i] - 1 for i in batch], device=tokens.device)
        yield x, keep, end
