"""The Score and joint attribution of every feature, from activations pooled over the gained samples.

Let G_t be the samples of task t that the base model gets wrong and the tuned model gets right. Activations on the tokens of
the prompt and the tuned model's response are pooled over positions, and then averaged over G_t:

* Score_k^t = mean (f_k^tuned − f_k^base), activations under the configured read-out (arXiv 2604.25011).
* J_k^t = mean f_k ‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂, f under the joint read-out (specific to mechprobe):
  the contribution of feature k to the difference of the two residual streams.

``swap_write`` is what J is for the ``swap`` read-out: mean ‖f_k^tuned s_tuned W_dec[k, tuned] − f_k^base s_base W_dec[k, base]‖₂.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import ConfigError
from mechprobe.memory import even_ranges
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.one_by_one import OneByOne, TensorFiles
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import progress
from mechprobe.ranks import in_turns, sharing
from mechprobe.selection.config import TOGETHER, SelectConfig
from mechprobe.selection.scores import Scores
from mechprobe.selection.stability import SampleValues
from mechprobe.types import Site
from sae_training import Crosscoder

T = TypeVar("T")


@torch.no_grad()
def score_features(
    crosscoder: Crosscoder,
    family: ModelFamily,
    gained: Mapping[str, Sequence[TokenizedSample]],
    *,
    site: Site,
    config: SelectConfig,
) -> tuple[Scores, SampleValues | None]:
    """Score and J of every feature on the given samples of every task, pooled over their ``kept`` positions.

    Positions that the crosscoder does not describe (`TokenRule`) are left out, of the mean differences, too.

    Returns:
        The scores, and the values of every sample under ``config.ranked_by`` if that is ``joint`` or ``score``.
    """
    models = family.subset(*crosscoder.model_names)
    sums = _Sums(crosscoder, models, config, len(gained))
    means: dict[str, list[Float[ndarray, " d_sae"]]] = {name: [] for name in sums.pooled}
    by_sample: list[Float[ndarray, "1 sample d_sae"]] = []
    with progress(sum(map(len, gained.values())), "scoring features", unit="samples") as advance:
        for row, (task, samples) in enumerate(gained.items()):
            pooled: dict[str, list[Tensor]] = {name: [] for name in means}
            for found in _of_batches(sums.of_batch, models, sums.rule.without_first(samples), site, config):
                sums.add(row, found)
                for name, values in found.pooled.items():
                    pooled[name].append(values)
                advance(found.n_samples, task=task)
            for name, parts in pooled.items():
                rows, shift = torch.cat(parts), sums.shift if name == "joint" else np.ones(1)
                means[name].append(rows.double().mean(0).numpy() * shift)
                if name == config.ranked_by:
                    by_sample.append((rows * torch.from_numpy(shift).float()).numpy()[None])
    counts = tuple(len(samples) for samples in gained.values())
    scores = Scores(
        tasks=tuple(gained),
        n_gained=counts,
        score=np.stack(means["score"]),
        joint=np.stack(means["joint"]),
        density=(sums.active / max(1, sums.n_positions)).numpy(),
        decoder_norm=crosscoder.decoder_norm(2).sum(1).double().cpu().numpy(),
        mean_act=(sums.total / sums.active.clamp(min=1)).numpy(),
        mean_difference=(sums.difference / max(1, sums.n_positions)).numpy(),
        last_difference=(sums.last / max(1, sums.n_last)).numpy(),
        fires=sums.fires.numpy(),
        swap_write=np.stack(means["swap_write"]) if "swap_write" in means else None,
    )
    return scores, SampleValues(tuple(by_sample)) if by_sample else None


@dataclass(frozen=True)
class _OfBatch:
    """Sums over the positions of a batch, and the values of every sample pooled over its positions, on the CPU."""

    active: Float[Tensor, " d_sae"]
    total: Float[Tensor, " d_sae"]
    fires: Bool[Tensor, " d_sae"]
    difference: Float[Tensor, " d_model"]
    last: Float[Tensor, " d_model"]
    n_last: int
    n_positions: int
    n_samples: int
    pooled: dict[str, Float[Tensor, "sample d_sae"]]


class _Sums:
    """Sums over the samples of all tasks, and what a batch adds to them."""

    def __init__(self, crosscoder: Crosscoder, models: ModelFamily, config: SelectConfig, n_tasks: int) -> None:
        self.crosscoder, self.config = crosscoder, config
        self.own = Readout(config.readout, config.near)
        self.swap = _swap(crosscoder, config)
        self.pooled = ("score", "joint", *(("swap_write",) if self.swap else ()))
        self.decoders = [crosscoder.own_decoder(name) for name in (config.tuned, config.base)]
        self.shift = decoder_change_norm(crosscoder, base=config.base, tuned=config.tuned).numpy()
        self.active, self.total = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
        self.difference, self.last = torch.zeros(2, models.d_model[config.tuned], dtype=torch.float64)
        self.rule = TokenRule.of(crosscoder)
        self.n_positions = self.n_last = 0
        self.fires = torch.zeros(n_tasks, crosscoder.d_sae, dtype=torch.bool)

    def add(self, task: int, found: _OfBatch) -> None:
        """Add the samples of a batch to task number ``task``."""
        self.active += found.active
        self.total += found.total
        self.fires[task] |= found.fires
        self.difference += found.difference
        self.last += found.last
        self.n_last += found.n_last
        self.n_positions += found.n_positions

    def of_batch(
        self, x: Mapping[str, Tensor], mask: Bool[Tensor, "sample pos"], end: Int[Tensor, " sample"]
    ) -> _OfBatch:
        """What samples add, pooled over ``mask``, with their pooled values by `pooled`.

        ``x`` holds the residuals ``[sample pos d_model]`` of every model, ``end`` the last prompt positions.
        """
        base, tuned, pooling = self.config.base, self.config.tuned, self.config.pooling
        joint = Readout("joint").feature_acts(self.crosscoder, x, tuned)
        own, other = (self.own.feature_acts(self.crosscoder, x, model) for model in (tuned, base))
        moved = x[tuned] - x[base]
        described = self.rule.by_norm(x)
        if described is not None:
            mask = mask & described
        kept = joint[mask]
        fires = torch.stack([(acts > 0).any(0) for acts in (kept, own[mask], other[mask])]).any(0)
        ends = (torch.arange(len(end), device=end.device), end)
        last = moved[ends] if described is None else moved[ends][described[ends]]
        values = {"score": own - other, "joint": joint}
        if self.swap:
            same = self.swap == self.own
            acts = (own, other) if same else (self.swap.feature_acts(self.crosscoder, x, m) for m in (tuned, base))
            values["swap_write"] = written_norm(*acts, *self.decoders)
        return _OfBatch(
            active=(kept > 0).double().sum(0).cpu(),
            total=kept.double().sum(0).cpu(),
            fires=fires.cpu(),
            difference=moved[mask].double().sum(0).cpu(),
            last=last.double().sum(0).cpu(),
            n_last=len(last),
            n_positions=int(mask.sum()),
            n_samples=len(mask),
            pooled={name: _pool(found, mask, pooling).cpu() for name, found in values.items()},
        )


def decoder_change_norm(crosscoder: Crosscoder, *, base: str, tuned: str) -> Float[Tensor, " d_sae"]:
    """‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂ in the models' own units.

    Raises:
        ConfigError: The two models have different widths.
    """
    first, second = crosscoder.own_decoder(tuned), crosscoder.own_decoder(base)
    if first.shape != second.shape:
        raise ConfigError(f"Models {tuned} and {base} differ in width; joint attribution needs equal widths.")
    return (first - second).double().norm(dim=1).cpu()


def written_norm(
    acts_tuned: Float[Tensor, "*rows d_sae"],
    acts_base: Float[Tensor, "*rows d_sae"],
    tuned: Float[Tensor, "d_sae d_model"],
    base: Float[Tensor, "d_sae d_model"],
) -> Float[Tensor, "*rows d_sae"]:
    """‖f_k^tuned W_k^tuned − f_k^base W_k^base‖₂ of every feature: what its transplant writes, for decoders in own units."""
    turn, mean = tuned - base, (tuned + base) / 2  # in these, equal activations or decoders leave no rounding error
    level, move = (acts_tuned + acts_base) / 2, acts_tuned - acts_base
    squares = level**2 * (turn**2).sum(1) + move**2 * (mean**2).sum(1) + 2 * level * move * (turn * mean).sum(1)
    return squares.clamp(min=0).sqrt()


def _swap(crosscoder: Crosscoder, config: SelectConfig) -> Readout | None:
    """The ``swap`` read-out; None where models of different widths would share slots, so that no transplant can use it."""
    readout = Readout("swap", config.near)
    try:
        _ = [readout.slots(crosscoder, model) for model in (config.base, config.tuned)]
    except ConfigError:
        return None
    return readout


def _pool(
    values: Float[Tensor, "batch pos d_sae"], mask: Bool[Tensor, "batch pos"], pooling: str
) -> Float[Tensor, "batch d_sae"]:
    if pooling == "max":
        largest = values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
        return largest.where(mask.any(dim=1, keepdim=True), torch.zeros_like(largest))
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


_TOKENS = 4096
"""Most tokens of a batch, padding included: it has several activations of every feature at every token."""


def _of_batches(
    work: Callable[[dict[str, Tensor], Bool[Tensor, "batch pos"], Int[Tensor, " batch"]], T],
    models: ModelFamily,
    samples: Sequence[TokenizedSample],
    site: Site,
    config: SelectConfig,
) -> Iterator[T]:
    """Yield ``work({model: [batch pos d_model]}, kept positions, last prompt position)`` for every batch, in order.

    Several processes divide the batches. One model is in memory at a time.
    """
    pad_id, device = models.pad_id, next(iter(models)).device
    batches = [[samples[index] for index in batch] for batch in _batches([len(sample.ids) for sample in samples])]
    inputs = [left_pad([sample.ids for sample in chosen], pad_id, device) for chosen in batches]
    loaded = OneByOne(models, models.names)
    with TensorFiles() as files:
        for name in models.names:
            loaded.load(name)
            for number, (tokens, attention) in enumerate(inputs):
                if not sharing().owns(number):
                    continue
                resid = residuals_plain(models[name], tokens, attention, [site], most=config.batch_size)[site]
                files.write(number, name, resid=resid.float())
        loaded.release()

        def of_batch(number: int) -> T:
            chosen, tokens = batches[number], inputs[number][0]
            width = tokens.shape[1]
            keep = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, sample in enumerate(chosen):
                keep[row, width - len(sample.ids) :] = torch.tensor(sample.kept)
            end = torch.tensor([width - sum(sample.response) - 1 for sample in chosen], device=tokens.device)
            x = {name: files.read(number, name, device=device)["resid"] for name in models.names}
            return work(x, keep.to(tokens.device), end)

        yield from in_turns(of_batch, range(len(batches)))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of samples of similar length: at most `TOGETHER` of them, with at most `_TOKENS` tokens."""
    for batch in length_batches(lengths, TOGETHER):
        longest = lengths[batch[-1]]
        for part in even_ranges(len(batch), max(1, _TOKENS // longest)):
            yield batch[part]
