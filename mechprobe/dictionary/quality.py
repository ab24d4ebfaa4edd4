"""How good a crosscoder is on held-out tokens, model by model, and whether its features may be believed."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.config import QualityGate
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import SplicedLoss
from mechprobe.errors import StoreError
from sae_training import Crosscoder, ReconstructionSums, VarianceSums
from sae_training.reconstruction import squared_norms

Batches = Callable[[], Iterable[Tensor]]
"""Gives the same ``[batch model d_model]`` tensors every time it is called."""


@dataclass(frozen=True)
class ModelQuality:
    """One model's numbers.

    Attributes:
        fve: 1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², pooled over rows, about the mean, with the joint read-out.
        fve_per_token: Mean over rows of 1 − ‖x−x̂‖² / ‖x−x̄‖², with the joint read-out.
        fve_readout: As ``fve``, with the model's own read-out, which edits use: what the gate looks at.
        l0: Mean number of latents above zero, in the model's own read-out.
        dead_share: Share of latents that its read-out never shows above zero.
        loss: Cross-entropy and divergence with the reconstruction spliced in; None where no models were given.
    """

    fve: float
    fve_per_token: float
    fve_readout: float
    l0: float
    dead_share: float
    loss: SplicedLoss | None = None


@dataclass(frozen=True)
class Quality:
    """Quality of a crosscoder, and what the gate says of it.

    Attributes:
        models: Numbers of each model.
        l0: Mean number of latents above zero in the joint read-out.
        dead_share: Share of latents that the joint read-out never shows above zero.
        n_rows: Held-out rows read.
        readout: How one model's activation was read.
        gate: The thresholds.
        failures: One sentence for each threshold missed; empty means that the features are trusted.
    """

    models: dict[str, ModelQuality]
    l0: float
    dead_share: float
    n_rows: int
    readout: str
    gate: QualityGate
    failures: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether the gate was passed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """A JSON value that a report can read; the spliced loss stands among a model's other numbers."""
        value = asdict(self)
        losses = {name: model.pop("loss") or {} for name, model in value["models"].items()}
        models = {name: {**model, **losses[name]} for name, model in value["models"].items()}
        gate = self.gate.model_dump(mode="json")
        return {**value, "models": models, "gate": gate, "failures": list(self.failures), "trusted": self.trusted}


def gate_failures(
    models: dict[str, ModelQuality], dead_share: float, gate: QualityGate, readout: str
) -> tuple[str, ...]:
    """One sentence for each threshold that is missed; a value that is not a number misses it."""
    failures = []
    for name, quality in models.items():
        if not quality.fve_readout >= gate.min_fve:
            failures.append(
                f"FVE of {name} by the {readout} read-out is {quality.fve_readout:.3f}, below {gate.min_fve:.2f}."
            )
        loss = quality.loss
        if loss is not None and not loss.ce_recovered >= gate.min_ce_recovered:
            failures.append(f"CE recovered of {name} is {loss.ce_recovered:.3f}, below {gate.min_ce_recovered:.2f}.")
    if not dead_share <= gate.max_dead_share:
        failures.append(f"{dead_share:.1%} of the latents are dead, more than {gate.max_dead_share:.0%}.")
    return tuple(failures)


@torch.no_grad()
def measure_quality(
    crosscoder: Crosscoder,
    batches: Batches,
    *,
    readout: Readout | None = None,
    gate: QualityGate | None = None,
    losses: dict[str, SplicedLoss] | None = None,
) -> Quality:
    """Reconstruction, sparsity and the gate on held-out rows.

    Args:
        crosscoder: The dictionary.
        batches: Called twice (for the mean, then for the rest); gives raw activations of held-out rows.
        readout: How one model's activation is read, ``swap`` when None.
        gate: Thresholds; the defaults when None.
        losses: What `mechprobe.dictionary.splicing.spliced_losses` measured, by model.

    Raises:
        StoreError: There is no held-out row.
    """
    readout, gate = readout or Readout(), gate or QualityGate()
    names = crosscoder.model_names
    sums = _QualitySums(crosscoder, _mean(crosscoder, batches), readout)
    for x in batches():
        sums.update(x.to(crosscoder.device))
    variance = sums.variance.compute()
    fve, fve_per_token = sums.joint.fve(variance).tolist(), sums.joint.fve_per_token.tolist()
    models = {
        name: ModelQuality(
            fve=fve[index],
            fve_per_token=fve_per_token[index],
            fve_readout=float(sums.own[name].fve(variance[index])),
            l0=sums.own[name].l0,
            dead_share=sums.own[name].dead_frac,
            loss=(losses or {}).get(name),
        )
        for index, name in enumerate(names)
    }
    joint = sums.joint
    failures = gate_failures(models, joint.dead_frac, gate, str(readout))
    return Quality(models, joint.l0, joint.dead_frac, joint.n_tokens, str(readout), gate, failures)


def _mean(crosscoder: Crosscoder, batches: Batches) -> Float[Tensor, "model d_model"]:
    total, n_rows = None, 0
    for x in batches():
        part = x.to(crosscoder.device).sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        n_rows += len(x)
    if total is None or n_rows == 0:
        raise StoreError("The activation store has no held-out rows; make it again with a larger held-out share.")
    return total / n_rows


class _QualitySums:
    """Sums over rows: of the joint read-out, and of each model's own."""

    def __init__(self, crosscoder: Crosscoder, mean: Float[Tensor, "model d_model"], readout: Readout) -> None:
        widths = crosscoder.config.widths
        self.crosscoder, self.mean, self.readout = crosscoder, mean.flatten(), readout
        self.variance = VarianceSums(widths, self.mean)
        self.joint = ReconstructionSums(widths)
        self.own = {name: ReconstructionSums() for name in crosscoder.model_names}

    def update(self, x: Float[Tensor, "batch model d_model"]) -> None:
        """Add a batch of raw activations."""
        joint, exact = self.crosscoder.encode(x), x.double()
        flat = exact.flatten(1)
        self.variance.update(flat)
        error = flat - self.crosscoder.decode(joint).double().flatten(1)
        self.joint.update(joint, error, squared_norms(flat - self.mean, self.variance.widths))
        for index, name in enumerate(self.crosscoder.model_names):
            own = self.readout.feature_acts(self.crosscoder, x, name)
            left = exact[:, index] - self.crosscoder.decode_model(own, name).double()
            self.own[name].update(own, left)
