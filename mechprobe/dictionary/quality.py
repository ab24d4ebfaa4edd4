"""How well a crosscoder reconstructs held-out rows, model by model, and whether its features may be trusted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.config import QualityConfig, QualityGate
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.result import ModelQuality, Quality, SplicedLoss
from mechprobe.dictionary.splicing import held_out_samples, spliced_losses
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import activity
from sae_training import Crosscoder, ReconstructionSums, VarianceSums
from sae_training.reconstruction import squared_norms, within

Batches = Callable[[], Iterable[Tensor]]
"""Returns the same ``[batch model d_model]`` tensors on every call."""


def held_out_quality(
    crosscoder: Crosscoder,
    store: ActivationStore,
    family: ModelFamily | None,
    config: QualityConfig,
    *,
    also: Callable[[LanguageModel], object] | None = None,
) -> Quality:
    """`measure_quality` on the held-out split of a store, with the spliced loss where the models are given.

    ``also`` is called with each model once, while its weights are in memory.
    """
    losses = None
    if family is not None:
        site, samples = store.resolve_site(config.site), held_out_samples(store, config.ce_samples)
        losses = spliced_losses(crosscoder, family, site, samples, batch_size=config.ce_batch, also=also)
    batches = partial(store.batches, config.batch_rows, seed=0, site=config.site, split="held_out", epochs=1)
    readout = Readout(config.readout, config.near)
    far_norms = store.far_norms([store.resolve_site(config.site)])
    return measure_quality(crosscoder, batches, readout=readout, gate=config.gate, losses=losses, far_norms=far_norms)


@torch.no_grad()
def measure_quality(
    crosscoder: Crosscoder,
    batches: Batches,
    *,
    readout: Readout | None = None,
    gate: QualityGate | None = None,
    losses: dict[str, SplicedLoss] | None = None,
    far_norms: Sequence[float] | None = None,
) -> Quality:
    """Measure reconstruction and sparsity on held-out rows, and apply the gate.

    Where some rows are far, FVE is also measured without them, and the gate tests that FVE.

    Args:
        crosscoder: The dictionary.
        batches: Returns raw activations of held-out rows; called twice, for the mean and then for the other sums.
        readout: How one model's features are read; ``swap`` among all models when None.
        gate: Thresholds; the defaults when None.
        losses: Results of `mechprobe.dictionary.splicing.spliced_losses`, by model.
        far_norms: Norm of each model above which a row is far (`RowSource.far_norms`); None looks for no far rows.

    Raises:
        StoreError: There are no held-out rows.
    """
    readout, gate = readout or Readout(), gate or QualityGate()
    with activity("reconstruction of held-out rows"):
        sums = _QualitySums.over(batches, crosscoder, readout, far_norms)
    models, joint = sums.models(losses or {}), sums.joint
    if far_norms is not None and 0 < sums.n_far < joint.n_tokens:
        ordinary = partial(_ordinary, batches, crosscoder, far_norms)
        with activity("reconstruction without far rows"):
            without = _QualitySums.over(ordinary, crosscoder, readout).models({})
        models = {
            name: model.model_copy(
                update={"fve_ordinary": without[name].fve, "fve_readout_ordinary": without[name].fve_readout}
            )
            for name, model in models.items()
        }
    described = {name: models[name] for name in crosscoder.config.reconstructed}
    failures = _failures(described, joint.dead_frac, gate, str(readout))
    return Quality(
        models=models,
        l0=joint.l0,
        dead_frac=joint.dead_frac,
        n_rows=joint.n_tokens,
        readout=str(readout),
        gate=gate,
        failures=failures,
        trusted=not failures,
    )


def _failures(models: dict[str, ModelQuality], dead_frac: float, gate: QualityGate, readout: str) -> tuple[str, ...]:
    """One sentence for each threshold that is missed by a model with decoders. NaN misses every threshold."""
    failures = []
    for name, quality in models.items():
        fve, loss, what = quality.fve_readout, quality.loss, ""
        if quality.fve_readout_ordinary is not None:
            fve, what = quality.fve_readout_ordinary, " without far tokens"
        if not fve >= gate.min_fve:
            failures.append(f"FVE of {name}{what} by the {readout} read-out is {fve:.3f}, below {gate.min_fve:.2f}.")
        if loss is not None and not loss.ce_recovered >= gate.min_ce_recovered:
            failures.append(f"CE recovered of {name} is {loss.ce_recovered:.3f}, below {gate.min_ce_recovered:.2f}.")
    if not dead_frac <= gate.max_dead_share:
        failures.append(f"{dead_frac:.1%} of the features are dead, more than {gate.max_dead_share:.0%}.")
    return tuple(failures)


def _ordinary(batches: Batches, crosscoder: Crosscoder, far_norms: Sequence[float]) -> Iterator[Tensor]:
    """The batches without rows that are far in any model."""
    for x in batches():
        flat = crosscoder.flatten(x.to(crosscoder.device))
        kept = within(flat, crosscoder.config.widths, far_norms)
        if bool(kept.any()):
            yield x if bool(kept.all()) else x[kept.to(x.device)]


def _mean(crosscoder: Crosscoder, batches: Batches) -> Float[Tensor, "model d_model"]:
    total, n_rows = None, 0
    for x in batches():
        part = crosscoder.unflatten(crosscoder.target(x.to(crosscoder.device))).sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        n_rows += len(x)
    if total is None or n_rows == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    return total / n_rows


class _QualitySums:
    """Sums over rows under the joint read-out and under each model's own."""

    def __init__(self, crosscoder: Crosscoder, mean: Float[Tensor, "model d_model"], readout: Readout) -> None:
        widths = crosscoder.config.widths
        self.crosscoder, self.mean, self.readout = crosscoder, mean.flatten(), readout
        self.n_far = 0
        self.variance = VarianceSums(widths, self.mean)
        self.joint = ReconstructionSums(widths)
        self.own = {name: ReconstructionSums() for name in crosscoder.model_names}

    @classmethod
    def over(
        cls, batches: Batches, crosscoder: Crosscoder, readout: Readout, far_norms: Sequence[float] | None = None
    ) -> "_QualitySums":
        """The sums over all batches, which are read twice, and the number of far rows."""
        sums = cls(crosscoder, _mean(crosscoder, batches), readout)
        for batch in batches():
            x = batch.to(crosscoder.device)
            sums.update(x)
            if far_norms is not None:
                sums.n_far += int((~within(crosscoder.flatten(x), crosscoder.config.widths, far_norms)).sum())
        return sums

    def update(self, x: Float[Tensor, "batch model d_model"]) -> None:
        joint, flat = self.crosscoder.encode(x), self.crosscoder.target(x).double()
        exact = self.crosscoder.unflatten(flat)
        self.variance.update(flat)
        error = flat - self.crosscoder.decode(joint).double().flatten(1)
        self.joint.update(joint, error, squared_norms(flat - self.mean, self.variance.widths))
        for index, name in enumerate(self.crosscoder.model_names):
            own = self.readout.feature_acts(self.crosscoder, x, name)
            left = exact[:, index] - self.crosscoder.decode_model(own, name).double()
            self.own[name].update(own, left)

    def models(self, losses: dict[str, SplicedLoss]) -> dict[str, ModelQuality]:
        variance = self.variance.compute()
        fve, fve_per_token = self.joint.fve(variance).tolist(), self.joint.fve_per_token.tolist()
        return {
            name: ModelQuality(
                fve=fve[index],
                fve_per_token=fve_per_token[index],
                fve_readout=float(own.fve(variance[index])),
                l0=own.l0,
                dead_frac=own.dead_frac,
                loss=losses.get(name),
            )
            for index, (name, own) in enumerate(self.own.items())
        }
