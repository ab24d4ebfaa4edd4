"""What the stages of this room write: ``quality.json`` and ``metrics.json``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, Field, model_serializer, model_validator

from mechprobe.dictionary.config import QualityGate
from mechprobe.environment import require
from mechprobe.formatting import percent
from mechprobe.results import Number, Result

if TYPE_CHECKING:
    import pandas as pd

_ALIASES = AliasChoices("dead_share", "dead_frac")
DeadFrac = Annotated[Number, Field(validation_alias=_ALIASES, serialization_alias="dead_share")]
"""Share of dead features, for the files that call it ``dead_share``."""


class SplicedLoss(Result):
    """Next-token loss of one model with the reconstruction in place of its residual: means over predictions, in nats.

    Attributes:
        ce_clean: Cross-entropy of the unedited model.
        ce_spliced: Cross-entropy with the reconstruction in place of the residual.
        ce_zero: Cross-entropy with zeros in place of the residual.
        ce_recovered: (zero − spliced) / (zero − clean); 1 where the reconstruction loses nothing.
        kl_spliced: KL(clean ‖ spliced).
        kl_zero: KL(clean ‖ zero).
        n_predictions: Predicted tokens behind each mean.
        n_samples: Samples that the tokens come from.
        targets: ``response`` where only response tokens are predicted, ``all`` where no sample has a response.
    """

    ce_clean: Number
    ce_spliced: Number
    ce_zero: Number
    ce_recovered: Number
    kl_spliced: Number
    kl_zero: Number
    n_predictions: int
    n_samples: int
    targets: str


class ModelQuality(Result):
    """How well the crosscoder reconstructs one model on held-out rows.

    Attributes:
        fve: 1 − Σ‖x−x̂‖² / Σ‖x−x̄‖², pooled over rows, about the mean, under the joint read-out.
        fve_per_token: Mean over rows of 1 − ‖x−x̂‖² / ‖x−x̄‖², under the joint read-out.
        fve_readout: As ``fve``, under the model's own read-out, which edits use. The gate tests this one.
        fve_ordinary: ``fve`` over the rows that are not far, about their own mean; None, and not in the file, without far rows.
        fve_readout_ordinary: ``fve_readout`` over these rows; where there are far rows, the gate tests this one.
        l0: Mean number of active features under the model's own read-out.
        dead_frac: Share of features that are active on no row under the model's own read-out.
        loss: Spliced next-token loss; None without models. The file has its keys beside the others.
    """

    fve: Number
    fve_per_token: Number
    fve_readout: Number
    l0: Number
    dead_frac: DeadFrac
    loss: SplicedLoss | None = None
    fve_ordinary: Number | None = None
    fve_readout_ordinary: Number | None = None

    @model_validator(mode="before")
    @classmethod
    def _nest_loss(cls, value: Any) -> Any:
        found = {name: value[name] for name in SplicedLoss.model_fields if name in value}
        rest = {name: item for name, item in value.items() if name not in found}
        return rest | {"loss": found} if found else value

    @model_serializer(mode="wrap")
    def _flatten_loss(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        value = serialize(self)
        value = value | (value.pop("loss") or {})
        return {key: item for key, item in value.items() if item is not None or not key.endswith("_ordinary")}


class Quality(Result):
    """``quality.json``: how good a crosscoder is on held-out rows, and whether it passes the gate.

    Attributes:
        models: One record per model.
        l0: Mean number of active features under the joint read-out.
        dead_frac: Share of features that are active on no row under the joint read-out.
        n_rows: Held-out rows.
        readout: How each model's features were read.
        gate: The thresholds.
        failures: One sentence for each threshold that is missed.
        trusted: Whether the crosscoder passes the gate.
    """

    models: dict[str, ModelQuality]
    l0: Number
    dead_frac: DeadFrac
    n_rows: int
    readout: str
    gate: QualityGate
    failures: tuple[str, ...]
    trusted: bool

    def _in_short(self) -> str:
        fve = ", ".join(f"{name} {found.fve_readout:.3f}" for name, found in self.models.items())
        state = "passes the gate" if self.trusted else f"fails the gate: {' '.join(self.failures)}"
        return f"FVE {fve}; L0 {self.l0:.1f}; {percent(self.dead_frac)} % dead; {state}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per model, with the keys of ``quality.json``."""
        rows = [{"model": name, **found.to_dict()} for name, found in self.models.items()]
        return require("pandas", "The table of quality").DataFrame(rows)


class HeldOutMetrics(Result):
    """``metrics.json`` of an imported crosscoder: reconstruction and sparsity on the held-out rows of a store.

    The measures are those of `sae_training.Metrics`, NaN where no row is held out. With several sites, values per model are
    per source, ``model/site``, and ``sites`` replaces ``site``. ``fve_ordinary`` and ``far_tokens`` are there only where some
    of the tokens are far (more than 10 times the median norm).
    """

    split: str = "held_out"
    fve: dict[str, Number]
    fve_all: Number
    fve_per_token: dict[str, Number]
    l0: Number
    dead_frac: Number
    held_out_tokens: int
    fve_ordinary: dict[str, Number] | None = None
    far_tokens: int | None = None
    site: str | None = None
    sites: tuple[str, ...] | None = None

    @property
    def headline(self) -> dict[str, Any]:
        """The values that the manifest repeats."""
        return {"fve": self.fve, "l0": self.l0, "dead_frac": self.dead_frac}

    def to_dict(self) -> dict[str, Any]:
        """The JSON value, without what is not set."""
        return {name: value for name, value in super().to_dict().items() if value is not None}

    @property
    def far_sentence(self) -> str:
        """What far tokens do to the measures; empty where there are none."""
        if not self.far_tokens:
            return ""
        share = percent(self.far_tokens / self.held_out_tokens, 1)
        return (
            f"{self.far_tokens:,} of {self.held_out_tokens:,} held-out tokens ({share} %) have more than 10 times the median norm "
            "and decide FVE; read FVE without them, or drop them with cache.drop_first_positions or cache.drop_norm_above."
        )


class TrainingMetrics(HeldOutMetrics):
    """``metrics.json`` of a trained crosscoder.

    Attributes:
        training: The last line of ``metrics.jsonl``.
        tokens: Training tokens, repetitions included.
        steps: Training steps.
        distinct_tokens: Distinct training tokens.
        epochs: Passes over the store's training rows.
        scale: Divisor of each model's activations.
    """

    training: dict[str, Any]
    tokens: int
    steps: int
    distinct_tokens: int
    epochs: float
    scale: dict[str, float]
