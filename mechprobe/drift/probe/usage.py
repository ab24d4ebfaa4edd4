"""Which features of a dictionary the models use on the prompts of each skill, and how far that is from base's use.

The use of a skill is the distribution over features of how often each is active on the prompts' tokens; its drift is the total
variation distance between the distributions of a checkpoint and of base. All models read the same prompts. (Ours.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.data.encoding import Ids
from mechprobe.dictionary.readout import FoldedEncoder, Readout
from mechprobe.drift.probe.profile import Norm
from mechprobe.models.family import ModelFamily
from mechprobe.models.one_by_one import TensorFiles, lower_part
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from sae_training import Crosscoder

N_SPLITS = 50
"""Random halves of the items over which the split-half distances are averaged."""
N_DRAWS = 400
"""Bootstrap draws of the interval."""
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Counts:
    """How often each feature is active on the tokens of each prompt, in one model, and how many tokens there are."""

    active: Float[ndarray, "prompt d_sae"]
    tokens: Float[ndarray, " prompt"]


def count_active(
    crosscoder: Crosscoder, family: ModelFamily, site: Site, prompts: Sequence[Ids], readout: Readout
) -> dict[str, Counts]:
    """`Counts` of every model of a dictionary. One model, up to the site, is in memory at a time; residuals wait in files.

    Special tokens and the first positions that the dictionary leaves out are not counted.
    """
    names, special = list(crosscoder.model_names), torch.tensor(sorted(family.tokenizer.all_special_ids))
    active = {name: np.zeros((len(prompts), crosscoder.d_sae), np.float32) for name in names}
    tokens = np.zeros(len(prompts))
    batches = list(forward_batches([len(ids) for ids in prompts], _BATCH_TOKENS))
    inputs = [padded([prompts[index] for index in batch], family.pad_id) for batch in batches]
    kept: list[Bool[torch.Tensor, "batch pos"]] = [mask.bool() & ~torch.isin(ids, special) for ids, mask in inputs]
    for counted in kept:
        counted[:, : crosscoder.config.drop_first_positions] = False
    with TensorFiles() as files:
        for name in names:
            with lower_part(family[name], site) as model:
                for number, ((ids, mask), counted) in enumerate(zip(inputs, kept, strict=True)):
                    found = residuals_plain(model, ids.to(model.input_device), mask, [site])[site]
                    files.write(number, name, resid=found[counted.to(found.device)].float())
        encoders = {name: FoldedEncoder(crosscoder, readout, name) for name in names}
        for number, (batch, counted) in enumerate(zip(batches, kept, strict=True)):
            row = np.repeat(batch, counted.sum(dim=1).numpy())
            tokens[batch] = counted.sum(dim=1).numpy()
            x = {name: files.read(number, name, device=str(crosscoder.device))["resid"] for name in names}
            for name, encoder in encoders.items():
                with torch.no_grad():
                    fired = (encoder(x) > 0).cpu().numpy()
                np.add.at(active[name], row, fired)
    return {name: Counts(rows, tokens) for name, rows in active.items()}


@dataclass(frozen=True)
class SkillDrift:
    """How far the use of features on one skill is from base's.

    Attributes:
        drift: Total variation distance of the two distributions on the same prompts, see `mechprobe.drift.probe.profile`.
        across: The same between the model on half of the prompts and base on the other half, mean over random halves.
        split_half: Base against itself between two halves: what ``across`` is where nothing changed.
    """

    drift: Norm
    across: float
    split_half: float


def density(counts: Counts, items: Int[ndarray, " item"]) -> Float[ndarray, " d_sae"]:
    """Share of the tokens of some prompts on which each feature is active."""
    return counts.active[items].sum(axis=0) / max(1.0, counts.tokens[items].sum())


def use_drift(model: Counts, base: Counts, items: Int[ndarray, " item"], rng: np.random.Generator) -> SkillDrift:
    """`SkillDrift` of one model on the prompts ``items``."""
    sides = [counts.active[items] for counts in (model, base)]
    found = _shares(np.ones((1, len(items))), sides)[0]
    noise = np.concatenate([np.abs(change - found).sum(axis=1) / 2 for change in _drawn(sides, rng)])
    value, null = float(np.abs(found).sum() / 2), float(np.quantile(noise, 0.95))
    drift = Norm(value, max(0.0, value - null), min(1.0, value + null), value - float(noise.mean()), null, len(items))
    across, split_half = [], []
    for _ in range(N_SPLITS if len(items) > 1 else 0):
        order = rng.permutation(len(items))
        one, two = order[: len(items) // 2], order[len(items) // 2 :]
        across.append(_distance(sides[0][one], sides[1][two]))
        split_half.append(_distance(sides[1][one], sides[1][two]))
    return SkillDrift(drift, *(float(np.mean(values)) if values else float("nan") for values in (across, split_half)))


def _drawn(sides: list[ndarray], rng: np.random.Generator) -> Iterator[Float[ndarray, "draw d_sae"]]:
    """Differences of the two distributions under bootstrap draws of the prompts, in parts."""
    n, size = len(sides[0]), max(1, 2_000_000 // sides[0].shape[1])
    for start in range(0, N_DRAWS, size):
        yield _shares(rng.multinomial(n, np.full(n, 1 / n), size=min(size, N_DRAWS - start)), sides)


def _shares(weights: ndarray, sides: list[ndarray]) -> Float[ndarray, "draw d_sae"]:
    """Distribution of use of the first side minus that of the second, with the prompts weighted."""
    first, second = (weights.astype(np.float32) @ side for side in sides)
    totals = [np.maximum(1.0, each.sum(axis=1, keepdims=True)) for each in (first, second)]
    return first / totals[0] - second / totals[1]


def _distance(one: ndarray, two: ndarray) -> float:
    first, second = one.sum(axis=0), two.sum(axis=0)
    return float(np.abs(first / max(1.0, first.sum()) - second / max(1.0, second.sum())).sum() / 2)
