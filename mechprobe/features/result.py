"""What the features stage and its validation write: ``summary.json``, ``null.json`` and ``stability.json``."""

from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.display import columns_of
from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from mechprobe.features.config import ClassThresholds, NullKind
from mechprobe.files import read_json
from mechprobe.results import IntervalNumbers, Number, Result

if TYPE_CHECKING:
    import pandas as pd


class ClassIntervals(Result):
    """95 % percentile intervals of every class count; ``n`` of each interval is the number of sequences.

    Attributes:
        sequences: Sequences are resampled. Counts that decoder norms alone decide (``shared``, ``dead``) do not vary.
        latents: Features are resampled too, which adds the variation due to which features a training happens to find. Use
            these intervals to compare one class with another.
        n_groups: Groups of sequences that were resampled.
        draws: Bootstrap draws.
    """

    sequences: dict[str, IntervalNumbers]
    latents: dict[str, IntervalNumbers]
    n_groups: int
    draws: int


class Histogram(Result):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]


class FeatureSummary(Result):
    """``summary.json``: the counts and distributions of a feature table.

    Attributes:
        models: Names in the order of the model axis.
        base: The model that the others are compared with.
        n_features: Features, dead ones included.
        n_alive: Features that are not dead.
        n_rows: Rows (tokens) that the table was computed on.
        readout: How each model's features were read.
        thresholds: When a feature counts as absent, confirmed, dead.
        class_counts: Features of each class, confirmed by latent scaling.
        class_by_norm_counts: Features of each class by decoder norms alone.
        class_intervals: Bootstrap intervals of ``class_counts``; None without bootstrap draws.
        histograms: Histograms of MAS and NRN over live features, by column of the table.
        quantiles: Their quantiles.
        n_top_rows: Rows of highest activation kept for each feature.
    """

    models: tuple[str, ...]
    base: str
    n_features: int
    n_alive: int
    n_rows: int
    readout: str
    thresholds: ClassThresholds
    class_counts: dict[str, int]
    class_by_norm_counts: dict[str, int]
    class_intervals: ClassIntervals | None
    histograms: dict[str, Histogram]
    quantiles: dict[str, dict[str, Number]]
    n_top_rows: int

    def _in_short(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.class_counts.items() if count)
        return f"{self.n_features:,} features of {', '.join(self.models)} on {self.n_rows:,} rows: {counts}"


class SpecificCounts(Result):
    """How many features of a null's dictionary are falsely called specific to some models; see also `FeatureSummary`.

    Attributes:
        n_false: Live features of specific classes, ``confirmed`` by latent scaling and ``by_norm``.
        false_positives: Their share of the live features, with Wilson intervals.
    """

    class_counts: dict[str, int]
    class_by_norm_counts: dict[str, int]
    class_intervals: ClassIntervals | None
    n_alive: int
    n_false: dict[str, int]
    false_positives: dict[str, IntervalNumbers]


class NullResult(Result):
    """``null.json``: the outcome of one null.

    Attributes:
        kind: Which null.
        passed: Whether the null gave what it must give.
        sentence: The outcome in words, with its numbers.
    """

    kind: NullKind
    passed: bool
    sentence: str

    def _in_short(self) -> str:
        return f"{self.kind}, {'passed' if self.passed else 'failed'}: {self.sentence}"


class IdenticalNull(NullResult, SpecificCounts):
    """The null ``identical``: every model is base, so no feature may be specific."""


class EqualCountsTest(Result):
    """The counts of classes with equally many owners, and the Holm-adjusted p-value of their being equal."""

    counts: dict[str, int]
    p_holm: float


class ShuffledNull(NullResult, SpecificCounts):
    """The null ``shuffled-labels``: the classes of equally many models must be equally large but for chance.

    ``within_intervals`` tells whether the smallest count of every test lies in the interval of the largest.
    """

    tests: list[EqualCountsTest]
    within_intervals: bool


class HalvesNull(NullResult):
    """The null ``disjoint-halves``: two dictionaries of base, each trained on one half of the sequences.

    Attributes:
        halves: The counts of each dictionary.
        without_partner: Share of each dictionary's live features that the other lacks, with Wilson intervals.
        mean_cosine: Mean cosine of the matched decoders; NaN without any.
        min_cosine: Smallest cosine at which a feature counts as found again.
    """

    halves: list[SpecificCounts]
    without_partner: list[IntervalNumbers]
    mean_cosine: Number
    min_cosine: float


_NULLS: dict[str, type[NullResult]] = {
    "identical": IdenticalNull,
    "shuffled-labels": ShuffledNull,
    "disjoint-halves": HalvesNull,
}


def load_null(path: Path | str) -> NullResult:
    """Read a ``null.json`` as the record of its kind.

    Raises:
        ArtifactError: The file is missing or is not the result of a null.
    """
    value = read_json(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in _NULLS:
        raise ArtifactError(
            f"{path} names the null {kind!r}, not one of {', '.join(_NULLS)}; make it again with --force."
        )
    return _NULLS[kind].load(path)


class ClassStability(Result):
    """How the features of one class are found again under other seeds.

    A feature's own value is its mean over seeds; shares and cosines are means over the features of the class.

    Attributes:
        n: Features of the class.
        found_share: Share that a further seed finds, with a bootstrap interval over features.
        found_by_all: Share that every further seed finds, with a Wilson interval.
        same_class_share: Share that a further seed finds and gives the same class.
        mean_cosine: Mean cosine with the matched feature.
        counts: Size of the class in the run's crosscoder and in each further one.
    """

    n: int
    found_share: IntervalNumbers
    found_by_all: IntervalNumbers
    same_class_share: IntervalNumbers
    mean_cosine: IntervalNumbers
    counts: list[int]


class Stability(Result):
    """``stability.json``: which features of the run's crosscoder other seeds find again.

    Attributes:
        sentence: The result in words.
        classes: By class; ``all`` are the live features together.
        seeds: The further seeds.
        min_cosine: Smallest cosine at which a feature counts as found again.
    """

    sentence: str
    classes: dict[str, ClassStability]
    seeds: list[int]
    min_cosine: float

    def _in_short(self) -> str:
        return self.sentence

    def to_pandas(self) -> "pd.DataFrame":
        """One row per class: how many of its features further seeds find, with intervals."""
        names = ("found_share", "found_by_all", "same_class_share", "mean_cosine")
        rows: list[dict[str, float | str]] = []
        for name, found in self.classes.items():
            rows.append({"class": name, "n": found.n})
            for each in names:
                rows[-1] |= columns_of(each, getattr(found, each))
        return require("pandas", "The table of classes").DataFrame(rows)
