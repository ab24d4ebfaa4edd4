"""Next-token loss of each model with the crosscoder's reconstruction spliced into its residual stream.

The reconstruction replaces the residual at the tokens that a store keeps and the crosscoder describes; other tokens, such as
special ones and attention sinks, are left as they are. The baseline puts zeros at the same tokens. ``ce_recovered = (zero − spliced) / (zero − clean)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.result import SplicedLoss
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import StoreError
from mechprobe.memory import even_ranges, in_parts
from mechprobe.models.blocks import recording, splice
from mechprobe.models.family import ModelFamily
from mechprobe.models.head import Head
from mechprobe.models.load import LanguageModel
from mechprobe.models.log_probs import compared_with
from mechprobe.models.one_by_one import OneByOne, TensorFiles
from mechprobe.progress import Advance, activity, progress
from mechprobe.ranks import sharing
from mechprobe.types import Site
from sae_training import Crosscoder

T = TypeVar("T")


@dataclass(frozen=True)
class TokenizedSample:
    """One sample as the models read it.

    Attributes:
        ids: Token ids, special tokens included.
        kept: Positions that the store keeps.
        response: Positions of response tokens.
    """

    ids: tuple[int, ...]
    kept: tuple[bool, ...]
    response: tuple[bool, ...]


def held_out_samples(store: ActivationStore, n: int) -> list[TokenizedSample]:
    """The first ``n`` held-out samples of a store."""
    sequences = (store.sequence(sample) for sample in store.held_out_samples()[:n])
    return [TokenizedSample(sequence.ids, sequence.kept, sequence.response) for sequence in sequences]


_SAMPLES = 32
"""Samples that are padded to the same width. How many of them share a forward pass changes no bit."""
_PASS_TOKENS = 4096
"""Most tokens in a forward pass, padding included."""
_ROWS = 2048
"""Rows that are encoded at a time."""


@torch.no_grad()
def spliced_losses(
    crosscoder: Crosscoder,
    family: ModelFamily,
    site: Site,
    sequences: Sequence[TokenizedSample],
    *,
    batch_size: int = 32,
    also: Callable[[LanguageModel], object] | None = None,
) -> dict[str, SplicedLoss]:
    """Measure the `SplicedLoss` of every model of the crosscoder on held-out samples.

    One model is in memory at a time. Residuals and final states wait in temporary files. ``batch_size`` is the largest number of
    samples in a forward pass; it does not change the result. ``also`` is called with each model once, while it is in memory.

    Raises:
        StoreError: No kept token of any sample is followed by a token to predict.
    """
    names = crosscoder.model_names
    targets = "response" if any(any(sequence.response) for sequence in sequences) else "all"
    rule, device = TokenRule.of(crosscoder), str(crosscoder.device)
    parts = [rule.without_first(sequences[start : start + _SAMPLES]) for start in range(0, len(sequences), _SAMPLES)]
    batches = [_Batch.build(part, targets, device) for part in parts]
    n_predictions = sum(int(batch.scored.sum()) for batch in batches)
    if n_predictions == 0:
        raise StoreError(
            "In the held-out samples no kept token is followed by a token to predict; cache longer responses, or more prompts."
        )
    models = OneByOne(family, names)
    ranks = sharing()
    own = {number: batch for number, batch in enumerate(batches) if ranks.owns(number)}
    n_samples = sum(len(batch.ids) for batch in own.values())
    with progress(3 * len(names) * n_samples, "spliced loss", unit="samples") as advance, TensorFiles() as files:
        work = _Splicing(crosscoder, models, site, own, batch_size, files, advance)
        for name in names:
            work.read_clean(name)
        with activity("reconstructing the residuals"):
            work.reconstruct()
        sums = dict[str, dict[int, Tensor]]()
        for name in reversed(names):  # the last model is still loaded
            sums[name] = work.sums(name)
            if also is not None:
                also(family[name])
    models.release()
    found: dict[int, dict[str, Tensor]] = {}
    for of_rank in ranks.gather({number: {name: sums[name][number] for name in names} for number in own}):
        found |= of_rank
    totals = {name: torch.zeros(5, dtype=torch.float64) for name in names}
    for name, total in totals.items():
        for number in range(len(batches)):
            total += found[number][name]
    return {
        name: _loss((totals[name] / n_predictions).tolist(), n_predictions, len(sequences), targets) for name in names
    }


def _loss(means: Sequence[float], n_predictions: int, n_samples: int, targets: str) -> SplicedLoss:
    clean, spliced, zero, kl_spliced, kl_zero = means
    return SplicedLoss(
        ce_clean=clean,
        ce_spliced=spliced,
        ce_zero=zero,
        ce_recovered=(zero - spliced) / (zero - clean) if zero != clean else float("nan"),
        kl_spliced=kl_spliced,
        kl_zero=kl_zero,
        n_predictions=n_predictions,
        n_samples=n_samples,
        targets=targets,
    )


@dataclass(frozen=True)
class _Batch:
    ids: Int[Tensor, "sample pos"]
    attention: Int[Tensor, "sample pos"]
    kept: Bool[Tensor, "sample pos"]
    scored: Bool[Tensor, "sample pos"]
    """Positions whose next token is predicted."""

    @classmethod
    def build(cls, sequences: Sequence[TokenizedSample], targets: str, device: str) -> "_Batch":
        """Pad on the right: a causal model's output at a position does not depend on later positions."""
        ids, attention = padded([sequence.ids for sequence in sequences], 0)
        kept, target, scored = torch.zeros(3, *ids.shape, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            n = len(sequence.ids)
            kept[row, :n] = torch.tensor(sequence.kept)
            target[row, :n] = torch.tensor(sequence.response) if targets == "response" else True
        scored[:, :-1] = kept[:, :-1] & target[:, 1:] & (attention[:, 1:] == 1)
        return cls(ids.to(device), attention.to(device), kept.to(device), scored.to(device))

    @property
    def target(self) -> Int[Tensor, " prediction"]:
        """The tokens that follow the scored positions."""
        return self.ids.roll(-1, dims=1)[self.scored]

    def rows(self, part: slice) -> "_Batch":
        """Some of the samples, padded as in the whole batch."""
        return _Batch(self.ids[part], self.attention[part], self.kept[part], self.scored[part])


@dataclass(frozen=True)
class _Splicing:
    """The passes of all models over the same batches, by number: of several processes, each has its own batches.

    Files hold, by batch and model, ``clean``: the model's own ``resid`` at kept positions and its ``states`` at scored ones, and
    ``edited``: the residuals that replace ``resid``.
    """

    crosscoder: Crosscoder
    models: OneByOne
    site: Site
    batches: Mapping[int, _Batch]
    batch_size: int
    files: TensorFiles
    advance: Advance

    def read_clean(self, name: str) -> None:
        """Run a model as it is."""
        model = self.models[name]
        head = Head(model)
        for number, batch in self.batches.items():

            def read(part: slice, batch: _Batch = batch) -> tuple[Tensor, Tensor]:
                rows = batch.rows(part)
                with recording(model, [self.site], stop=False) as found:
                    states = head.states(rows.ids, rows.attention)
                return found[self.site][rows.kept], states[rows.scored]

            resid, states = map(torch.cat, zip(*self._in_parts(read, batch), strict=True))
            self.files.write(number, name, "clean", resid=resid, states=states)
            self.advance(len(batch.ids))

    def reconstruct(self) -> None:
        """Write what replaces the residuals of all models: the reconstruction, and zero for what it describes."""
        names, device = self.crosscoder.model_names, str(self.crosscoder.device)
        for number in self.batches:
            own = [self.files.read(number, name, "clean", device=device)["resid"].float() for name in names]
            x = torch.stack(own, dim=1)
            described = TokenRule.of(self.crosscoder).by_norm(dict(zip(names, own, strict=True)))
            chosen = torch.ones(len(x), dtype=torch.bool, device=x.device) if described is None else described
            spliced, zero = x.clone(), x.clone()
            places = torch.nonzero(chosen)[:, 0]
            for part in (places[some] for some in even_ranges(len(places), _ROWS)):
                rows = x[part]
                zero[part] = rows - self.crosscoder.unflatten(self.crosscoder.target(rows))
                spliced[part] = zero[part] + self.crosscoder.decode(self.crosscoder.encode(rows))
            for index, name in enumerate(names):
                self.files.write(number, name, "edited", spliced=spliced[:, index], zero=zero[:, index])

    def sums(self, name: str) -> dict[int, Float[Tensor, "5"]]:
        """Sums over the predictions of every batch: cross-entropy clean, spliced and zero, and KL spliced and zero."""
        model = self.models[name]
        head, sums = Head(model), dict[int, Tensor]()
        for number, batch in self.batches.items():
            device = str(self.crosscoder.device)
            clean = self.files.read(number, name, "clean", device=device)["states"]
            edits = self.files.read(number, name, "edited", device=device)
            edited = [self._edited(head, model, batch, edits[kind]) for kind in ("spliced", "zero")]
            found = compared_with(head, clean, [clean, *edited], batch.target)
            sums[number] = torch.stack(
                [-own.log_prob.sum() for own in found] + [own.kl.sum() for own in found[1:]]
            ).cpu()
            self.advance(2 * len(batch.ids))
        return sums

    def _edited(
        self, head: Head, model: nn.Module, batch: _Batch, resid: Float[Tensor, "kept d_model"]
    ) -> Float[Tensor, "prediction width"]:
        """Final states at scored positions with other residuals at kept ones."""
        counts = batch.kept.sum(1).cumsum(0).tolist()

        def read(part: slice) -> Tensor:
            rows = batch.rows(part)
            new = resid[counts[part.start - 1] if part.start else 0 : counts[part.stop - 1]]

            def replaced(old: Tensor) -> Tensor:
                changed = old.clone()
                changed[rows.kept] = new.to(old)
                return changed

            with splice(model, self.site, replaced):
                return head.states(rows.ids, rows.attention)[rows.scored]

        return torch.cat(self._in_parts(read, batch))

    def _in_parts(self, work: Callable[[slice], T], batch: _Batch) -> list[T]:
        most = max(1, min(self.batch_size, _PASS_TOKENS // batch.ids.shape[1]))
        return in_parts(work, len(batch.ids), most=most, what="Spliced loss", unit="samples")
