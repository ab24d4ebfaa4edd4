"""The result of the ``weights`` stage: the typed content of ``weights.json``, and the tables of single weights beside it."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mechprobe.files import read_frame, read_json
from mechprobe.formatting import MISSING, same_decimals
from mechprobe.results import Number, Result
from mechprobe.stage_folder import require_stage

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE, TABLE_FILE, PAIRS_FILE = "weights.json", "weights.parquet", "pairs.parquet"


class AgainstNull(Result):
    """A number of an update beside that of random updates with its shape and Frobenius norm.

    Attributes:
        value: The number, averaged over the matrices of a group.
        null: The same of the random updates, averaged over draws and matrices.
        low: Smallest draw, averaged over matrices.
        high: Largest draw, averaged over matrices.
    """

    value: Number
    null: Number
    low: Number
    high: Number

    def text(self, factor: int = 1) -> str:
        """The number times a factor with the range of its null: ``3.1 [40.2, 42.0]``."""
        if not isfinite(self.value):
            return MISSING
        value, low, high = same_decimals(factor * self.value, factor * self.low, factor * self.high)
        return f"{value} [{low}]" if low == high else f"{value} [{low}, {high}]"


class Group(Result):
    """The updates of the weights of one layer, of one module type, or of both.

    Attributes:
        layer: None for all layers, and for weights outside the blocks.
        type: Module type; empty for all.
        n: Number of parameters.
        n_weights: Vectors and matrices.
        n_matrices: Changed matrices, which the spectral numbers are averaged over.
        norm: ||ΔW||_F over all entries of the group.
        relative_norm: ||ΔW||_F / ||W||_F.
        unchanged: Share of the entries that are equal in the stored dtype.
        below_bf16: Share of the entries that changed by less than half the distance of neighbouring bfloat16 numbers.
        sign_flips: Share of the entries whose sign changed.
        spectral: Spectral number → value and null.
    """

    layer: int | None
    type: str
    n: int
    n_weights: int
    n_matrices: int
    norm: Number
    base_norm: Number
    relative_norm: Number
    max_abs: Number
    unchanged: Number
    below_bf16: Number
    sign_flips: Number
    spectral: dict[str, AgainstNull]


class ModelUpdate(Result):
    """What post-training added to the weights of base in one model.

    Attributes:
        kind: ``whole``, or ``adapter`` for LoRA factors that were not merged.
        dtypes: Dtypes in which its weights are stored.
        total: All weights.
        types: One group per module type.
        layers: One group per layer.
        cells: One group per layer and module type.
    """

    kind: str
    dtypes: tuple[str, ...]
    total: Group
    types: tuple[Group, ...]
    layers: tuple[Group, ...]
    cells: tuple[Group, ...]


class UpdatePair(Result):
    """Two updates of base.

    Attributes:
        cosine: Cosine of the two updates over all entries.
        cosine_null: Standard deviation of the cosine with a random update, 1 / sqrt(number of entries).
        overlap: ``left`` and ``right`` → mean squared cosine between the top subspaces of both updates, averaged over matrices;
            the null is a random subspace.
        types: Module type → cosine.
    """

    first: str
    second: str
    n: int
    n_matrices: int
    cosine: Number
    cosine_null: Number
    overlap: dict[str, AgainstNull]
    types: dict[str, Number]


class WeightsResult(Result):
    """The result of `mechprobe.drift.weight_statistics`.

    Attributes:
        names: The models other than base, in the order in which they were given.
        n: Parameters of base; a head that is the embedding counts once.
        n_weights: Vectors and matrices of base.
        tied: Whether head and embedding are one in every model.
        left_out: Model → tensors that base lacks, which were not compared.
        top_k: Size of the top subspaces.
        exact_up_to: Largest smaller side with exact singular values.
        n_estimated: Matrices whose singular values were estimated.
        error_values: Largest relative residual of their first singular vectors.
        error_nuclear: Largest standard error of their nuclear norm, as a share of it.
        models: Model → its update.
        pairs: Every two updates.
    """

    folder: Path = Field(exclude=True)
    base: str
    names: tuple[str, ...]
    n: int
    n_weights: int
    tied: bool
    left_out: dict[str, tuple[str, ...]]
    top_k: int
    exact_up_to: int
    n_estimated: int
    error_values: Number
    error_nuclear: Number
    models: dict[str, ModelUpdate]
    pairs: tuple[UpdatePair, ...]

    def _in_short(self) -> str:
        return f"{self.folder}: {self.n_weights} weights of {', '.join(self.names)} against {self.base}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per model and weight.

        Columns: ``model``, ``tensor``, ``layer``, ``type``, ``rows``, ``columns``, ``n``, ``base_dtype``, ``dtype``, the norms and
        shares of `Group`, ``kurtosis``, ``method`` (``exact`` or ``estimated``), ``k``, ``null_draws``, the errors, and every
        spectral number with ``_null``, ``_null_low`` and ``_null_high``. Vectors and unchanged matrices have no spectral numbers.
        """
        return read_frame(self.folder / TABLE_FILE, "The table of weights")

    def pairs_to_pandas(self) -> "pd.DataFrame":
        """One row per pair of models and weight: ``cosine``, and ``overlap_left`` and ``overlap_right`` with their null."""
        return read_frame(self.folder / PAIRS_FILE, "The table of pairs")

    @classmethod
    def load(cls, path: Path | str) -> "WeightsResult":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "weights")
        return cls.checked({**read_json(folder / RESULT_FILE), "folder": folder}, folder / RESULT_FILE)
