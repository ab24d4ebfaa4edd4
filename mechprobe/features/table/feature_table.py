"""The feature table: one row per feature with its class, its activity, and how far the evidence supports the class."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from mechprobe.dictionary.readout import Readout, model_scale
from mechprobe.display import Displayed
from mechprobe.environment import require
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.features.config import ClassThresholds, FeaturesConfig
from mechprobe.features.result import ClassIntervals, FeatureSummary, Histogram
from mechprobe.features.table import classes as feature_classes
from mechprobe.features.table.classes import LatentScaling, class_counts, latent_scaling
from mechprobe.features.table.collect import Collected, RowStore, TopRows, collect, scaled_norms
from mechprobe.features.table.intervals import class_intervals
from mechprobe.features.table.norms import decoder_cosine, decoder_shift, mas, nrn
from mechprobe.features.table.sums import FeatureSums
from mechprobe.files import read_frame, write_bytes
from mechprobe.progress import activity
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

TABLE_FILE = "table.parquet"
TOP_ROWS_FILE = "top_rows.parquet"
SUMMARY_FILE = "summary.json"
N_BINS = 50
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, repr=False)
class FeatureTable(Displayed):
    """What is known of every feature without a causal experiment.

    The attributes that `FeatureSummary` shares are explained there.

    Attributes:
        frame: One row per feature; `build_frame` lists the columns.
        top_rows: Rows of highest joint activation of each feature.
        intervals: Bootstrap intervals of the class counts; None without bootstrap draws.
    """

    frame: "pd.DataFrame"
    models: tuple[str, ...]
    base: str
    n_rows: int
    readout: str
    thresholds: ClassThresholds
    top_rows: TopRows
    intervals: ClassIntervals | None = None

    def __len__(self) -> int:
        return len(self.frame)

    def _in_short(self) -> str:
        return self.summary()._in_short()

    @property
    def tuned(self) -> tuple[str, ...]:
        """All models but base."""
        return tuple(name for name in self.models if name != self.base)

    @property
    def mas(self) -> Float[ndarray, "d_sae model"]:
        """Model attribution score."""
        return self.frame[[f"mas_{name}" for name in self.models]].to_numpy()

    @property
    def nrn(self) -> dict[str, Float[ndarray, " d_sae"]]:
        """Normalized relative norm of each tuned model against base."""
        return {name: self.frame[f"nrn_{name}"].to_numpy() for name in self.tuned}

    @property
    def density(self) -> dict[str, Float[ndarray, " d_sae"]]:
        """Share of rows on which the feature is active, under the joint read-out and each model's own."""
        return {name: self.frame[f"density_{name}"].to_numpy() for name in ("joint", *self.models)}

    @property
    def dead(self) -> Bool[ndarray, " d_sae"]:
        """Features that are dead."""
        return self.frame["dead"].to_numpy()

    @property
    def classes(self) -> list[str]:
        """Class of each feature, confirmed by latent scaling."""
        return self.frame["class"].tolist()

    def to_pandas(self) -> "pd.DataFrame":
        """A copy of the table, one row per feature."""
        return self.frame.copy()

    def summary(self) -> FeatureSummary:
        """Counts, thresholds and distributions, as the report needs them."""
        alive = self.frame.loc[~self.dead]
        shares = [f"mas_{name}" for name in self.models] + [f"nrn_{name}" for name in self.tuned]
        values = {name: alive[name].to_numpy() for name in shares}
        return FeatureSummary(
            models=self.models,
            base=self.base,
            n_features=len(self.frame),
            n_alive=len(alive),
            n_rows=self.n_rows,
            readout=self.readout,
            thresholds=self.thresholds,
            class_counts=class_counts(self.classes, self.models),
            class_by_norm_counts=class_counts(self.frame["class_by_norm"].tolist(), self.models),
            class_intervals=self.intervals,
            histograms={name: _histogram(column) for name, column in values.items()},
            quantiles={name: _quantiles(column) for name, column in values.items()},
            n_top_rows=self.top_rows.n,
        )

    def save(self, folder: Path | str) -> list[str]:
        """Write the table, its top rows and its summary into ``folder``; returns the file names."""
        folder, top = Path(folder), self.top_rows
        pd = _pandas()
        rows = pd.DataFrame({"feature": top.feature.numpy(), "row": top.row.numpy(), "value": top.value.numpy()})
        write_bytes(folder / TABLE_FILE, self.frame.to_parquet(index=False))
        write_bytes(folder / TOP_ROWS_FILE, rows.to_parquet(index=False))
        self.summary().save(folder / SUMMARY_FILE)
        return [TABLE_FILE, TOP_ROWS_FILE, SUMMARY_FILE]

    @classmethod
    def load(cls, folder: Path | str) -> "FeatureTable":
        """Read what `save` wrote.

        Raises:
            ArtifactError: A file is missing or cannot be read.
        """
        folder = Path(folder)
        summary = FeatureSummary.load(folder / SUMMARY_FILE)
        try:
            frame, rows = (read_frame(folder / name, "The feature table") for name in (TABLE_FILE, TOP_ROWS_FILE))
        except (OSError, ValueError) as error:
            text = f"The feature table in {folder} cannot be read ({error}); make it again with --force."
            raise ArtifactError(text) from None
        columns = [torch.tensor(rows[name].to_numpy()) for name in ("feature", "row", "value")]
        top = TopRows(summary.n_top_rows, *columns)
        about = (summary.models, summary.base, summary.n_rows, summary.readout, summary.thresholds)
        return cls(frame, *about, top, summary.class_intervals)


def require_table_packages() -> None:
    """Raise `DependencyError` if a package that reads and writes the table is missing."""
    require("pyarrow", "The feature table")
    _pandas()


def _pandas() -> Any:
    return require("pandas", "The feature table")


def feature_table(
    crosscoder: Crosscoder, store: RowStore, config: FeaturesConfig | None = None, *, rows: range | None = None
) -> FeatureTable:
    """Describe every feature of a crosscoder in one pass over an activation store.

    Args:
        crosscoder: The dictionary.
        store: Activations of the crosscoder's models, in the same order.
        config: Settings; the defaults when None.
        rows: Rows to read. None takes the first ``config.max_rows``, or all.

    Raises:
        StoreError: The store has other models than the crosscoder, or no rows.
        ConfigError: ``config.base`` is not one of the models.
    """
    config = config or FeaturesConfig()
    if rows is None and config.max_rows is not None:
        rows = range(min(config.max_rows, store.n_rows))
    return build_table(crosscoder, collect(crosscoder, store, config, rows=rows), config)


def build_table(crosscoder: Crosscoder, collected: Collected, config: FeaturesConfig) -> FeatureTable:
    """The table from what `collect` returned."""
    names = tuple(crosscoder.model_names)
    if config.base not in names:
        raise ConfigError(f"features.base is '{config.base}', but the models are {', '.join(names)}; name one of them.")
    with activity("computing the table"):
        frame = build_frame(crosscoder, collected.sums, config)
    intervals = None
    if collected.evidence is not None:
        by_norm = frame["class_by_norm"].tolist()
        with activity("intervals of the classes"):
            intervals = class_intervals(crosscoder, collected.evidence, scaled_norms(crosscoder), by_norm, config)
    about = (names, config.base, collected.sums.n_rows, str(Readout(config.readout, config.near)), config.thresholds)
    return FeatureTable(frame, *about, collected.top, intervals)


def _histogram(values: Float[ndarray, " feature"]) -> Histogram:
    counts, edges = np.histogram(values[np.isfinite(values)], bins=N_BINS, range=(0.0, 1.0))
    return Histogram(edges=edges.tolist(), counts=counts.tolist())


def _quantiles(values: Float[ndarray, " feature"]) -> dict[str, float]:
    values = values[np.isfinite(values)]
    return {f"{q:.2f}": float(np.quantile(values, q)) if len(values) else float("nan") for q in _QUANTILES}


def build_frame(crosscoder: Crosscoder, sums: FeatureSums, config: FeaturesConfig) -> "pd.DataFrame":
    """The table as a data frame, one row per feature. Dead features have NaN where a value needs activations.

    Columns, with m and o any models and t a tuned one:

    - ``feature``, ``class``, ``class_by_norm``, ``dead``;
    - ``density_m``, ``mean_m``, ``mean_active_m``, ``max_m`` of the model's own read-out, and the same of ``joint``;
    - ``correlation_m_o`` of two models' read-outs over rows;
    - ``mas_m``, ``nrn_t``, and decoder norms ``norm_l1_m``, ``norm_l2_m`` in the model's own units;
    - ``shift_t``, the length of the decoder's change from base, and ``cosine_m_o`` of the decoders;
    - latent scaling: ``beta_error_m_o`` and ``beta_reconstruction_m_o`` with m the owner, and ``nu_error_t`` and
      ``nu_reconstruction_t`` of base with t the owner.
    """
    names = list(crosscoder.model_names)
    base = names.index(config.base)
    dead = (sums.active[0] / sums.n_rows).cpu().numpy() <= config.thresholds.dead_density
    scaling, scaled = latent_scaling(crosscoder, sums), scaled_norms(crosscoder)
    by_norm = feature_classes.classes_by_norm(names, scaled, dead, config.thresholds.absent_below)
    agrees = feature_classes.confirmed(scaled, scaling, config.thresholds)
    columns: dict[str, Any] = {
        "feature": np.arange(crosscoder.d_sae),
        "class": feature_classes.classes(by_norm, agrees),
        "class_by_norm": by_norm,
        "dead": dead,
        **_activation_columns(names, sums),
    }
    geometry = {**_decoder_columns(crosscoder, names, base), **_scaling_columns(names, base, scaling)}
    columns |= {name: np.where(dead, np.nan, values) for name, values in geometry.items()}
    return _pandas().DataFrame(columns)


def _activation_columns(names: list[str], sums: FeatureSums) -> dict[str, ndarray]:
    n = sums.n_rows
    active, total, largest = (part.cpu().numpy() for part in (sums.active, sums.total, sums.largest))
    columns = {}
    for row, name in enumerate(["joint", *names]):
        columns[f"density_{name}"] = active[row] / n
        columns[f"mean_{name}"] = total[row] / n
        columns[f"mean_active_{name}"] = total[row] / np.where(active[row] > 0, active[row], np.nan)
        columns[f"max_{name}"] = largest[row]
    for first, second in combinations(range(len(names)), 2):
        columns[f"correlation_{names[first]}_{names[second]}"] = _correlation(sums, first, second)
    return columns


def _correlation(sums: FeatureSums, first: int, second: int) -> ndarray:
    """Pearson correlation over rows of two models' own activations; NaN where one is constant."""
    n = sums.n_rows
    mean = sums.total[1:] / n
    cov = sums.cross / n - mean.unsqueeze(0) * mean.unsqueeze(1)
    var = cov.diagonal(dim1=0, dim2=1).T.clamp(min=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (cov[first, second] / (var[first] * var[second]).sqrt()).cpu().numpy()
    return np.where(np.isfinite(value), np.clip(value, -1, 1), np.nan)


def _decoder_columns(crosscoder: Crosscoder, names: list[str], base: int) -> dict[str, ndarray]:
    norms = {p: crosscoder.decoder_norm(p).double().cpu().numpy() for p in (1, 2)}
    decoder = crosscoder.W_dec.detach().double().cpu().numpy()
    scale = model_scale(crosscoder).double().cpu().numpy()
    attribution, cosine = mas(norms[1]), decoder_cosine(decoder)
    columns = {}
    for index, name in enumerate(names):
        columns[f"mas_{name}"] = attribution[:, index]
        columns[f"norm_l1_{name}"] = norms[1][:, index]
        columns[f"norm_l2_{name}"] = norms[2][:, index]
        if index != base:
            columns[f"nrn_{name}"] = nrn(norms[1], tuned=index, base=base)
            columns[f"shift_{name}"] = decoder_shift(decoder, scale, tuned=index, base=base)
        for other in range(index + 1, len(names)):
            columns[f"cosine_{name}_{names[other]}"] = cosine[:, index, other]
    return columns


def _scaling_columns(names: list[str], base: int, scaling: LatentScaling) -> dict[str, ndarray]:
    columns = {}
    for owner, name in enumerate(names):
        if owner != base:
            columns[f"nu_error_{name}"] = scaling.nu_error(owner, base)
            columns[f"nu_reconstruction_{name}"] = scaling.nu_reconstruction(owner, base)
        for model, other in enumerate(names):
            columns[f"beta_error_{name}_{other}"] = scaling.beta_error[owner, model]
            columns[f"beta_reconstruction_{name}_{other}"] = scaling.beta_reconstruction[owner, model]
    return columns
