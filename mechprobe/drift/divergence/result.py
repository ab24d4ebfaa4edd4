"""The result of the ``drift`` stage: the typed content of ``divergence.json``, and the sums beside it."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mechprobe.drift.divergence.metrics import METRICS
from mechprobe.drift.divergence.sums_frame import paired_difference, sums_frame
from mechprobe.environment import require
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json
from mechprobe.results import Number, Result
from mechprobe.stage_folder import require_stage
from mechprobe.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE = "divergence.json"


class DivergenceRow(Result):
    """One number of one model in one part of the text.

    Attributes:
        model: The tuned model; it is compared with base.
        source: ``own``, ``base`` or ``gold`` continuations, or ``prompt``.
        temperature: Sampling temperature of the continuations; None where no model wrote them.
        by: ``all``, ``task``, ``skill``, ``domain``, ``token_class`` or ``bucket``.
        group: The part, such as ``digits``; ``all`` for the whole.
        metric: One of `mechprobe.drift.divergence.metrics.METRICS`.
        value: The number; ``low`` and ``high`` are its 95 % interval by bootstrap over sequences.
        n: Number of predicted tokens.
        n_sequences: Number of sequences that they stand in, the unit of the interval.
    """

    model: str
    source: str
    temperature: float | None
    by: str
    group: str
    metric: str
    value: Number
    low: Number
    high: Number
    n: int
    n_sequences: int

    @property
    def interval(self) -> Interval:
        """Value and ends, with the number of sequences."""
        return Interval(self.value, self.low, self.high, self.n_sequences)


class LayerRow(Result):
    """One number of `mechprobe.drift.divergence.representation` of one model at one layer; n counts positions."""

    model: str
    layer: int
    metric: str
    value: Number
    low: Number
    high: Number
    n: int
    n_sequences: int


class LensToken(Result):
    """A token that the mean difference promotes or suppresses, and by how much (`mechprobe.models.unembedding`)."""

    token: str
    id: int
    value: Number


class LensRow(Result):
    """The activation-difference lens of one model at one layer.

    Attributes:
        relative_norm: Norm of the mean difference over the mean norm of base's residual.
        consistency: Squared norm of the mean difference over the mean squared norm of the differences of single texts; 1 if all
            texts move alike, about 1/n if each moves its own way.
        promoted, suppressed: Tokens that the mean difference promotes and suppresses most.
        n: Number of texts.
    """

    model: str
    layer: int
    relative_norm: Number
    consistency: Number
    promoted: tuple[LensToken, ...]
    suppressed: tuple[LensToken, ...]
    n: int


class TokenRow(Result):
    """A token that changes often, of one model in one source.

    Attributes:
        kind: ``raised`` or ``lowered``: it is often among the logits that rise or fall most. ``shifted``: it is often realised
            where base ranks it below the first.
        place: 1 for the most frequent.
        count: Number of positions where that is so.
        share: Of all positions of the source (``shifted``: of the source's shifted positions).
        mean: Mean logit difference, minus its mean over the vocabulary; for ``shifted`` the mean rank under base.
    """

    model: str
    source: str
    temperature: float | None
    kind: str
    place: int
    token: str
    id: int
    count: int
    share: Number
    mean: Number


class DivergenceResult(Result):
    """The result of `mechprobe.drift.divergence`.

    Attributes:
        base: The model that all others are compared with.
        models: The other models.
        n_ids: Number of token ids that are compared: those that the tokenizer and every model have.
        n_rows: Number of logits of every model; those from ``n_ids`` on are left out of its distribution.
        rows: Divergences, as a flat table.
        layers: PCA shift and CKA, as a flat table.
        explained: Layer → share of base's variance along its first two principal components.
        lens: Activation-difference lens; empty if it was left out.
        lens_source: The texts of the lens, in words.
        tokens: Tokens that change most.
        rules: Definitions of metrics, buckets and token classes, in words.
        notes: What a reader should know: missing rows, temperatures at which kl_mc estimates no KL, probability outside.
    """

    folder: Path = Field(exclude=True)
    base: str
    models: tuple[str, ...]
    n_ids: int
    n_rows: dict[str, int]
    rows: tuple[DivergenceRow, ...]
    layers: tuple[LayerRow, ...]
    explained: dict[str, tuple[Number, ...]]
    lens: tuple[LensRow, ...]
    lens_source: str
    tokens: tuple[TokenRow, ...]
    rules: dict[str, str]
    notes: tuple[str, ...]

    def _in_short(self) -> str:
        sources = ", ".join(dict.fromkeys(row.source for row in self.rows))
        return f"{str(self.folder)!r}: {', '.join(self.models)} against {self.base} on {sources}"

    def find(self, **fields: Any) -> list[DivergenceRow]:
        """The rows with the given fields, such as ``model="rl", metric="kl", by="skill"``; without ``by`` those of ``all``."""
        wanted = {"by": "all", **fields}
        rows = self._by_part.get((wanted.pop("by"), wanted.pop("metric")), []) if "metric" in wanted else self.rows
        return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]

    @cached_property
    def _by_part(self) -> dict[tuple[str, str], list[DivergenceRow]]:
        """The rows by breakdown and metric, because reports look up every number."""
        found: dict[tuple[str, str], list[DivergenceRow]] = {}
        for row in self.rows:
            found.setdefault((row.by, row.metric), []).append(row)
        return found

    def interval(
        self, model: str, metric: str, *, source: str = "own", by: str = "all", group: str = "all"
    ) -> Interval:
        """One number with its interval, at the lowest temperature where there are several.

        Raises:
            ArtifactError: There is no such row.
        """
        found = self.find(model=model, metric=metric, source=source, by=by, group=group)
        if not found:
            raise ArtifactError(
                f"{self.folder} has no {metric} of {model} in {source}, {by} {group}; the metrics are {', '.join(METRICS)}."
            )
        return min(found, key=lambda row: row.temperature or 0.0).interval

    def difference(
        self,
        first: str,
        second: str,
        metric: str = "kl",
        *,
        source: str = "base",
        by: str = "all",
        group: str = "all",
        draws: int = 1000,
        seed: int = 0,
    ) -> Interval:
        """A metric of one tuned model minus that of another, with a bootstrap over the prompts that both have; n counts them.

        In the sources ``base``, ``gold`` and ``prompt`` both read the same tokens. Their own continuations differ.

        Raises:
            ArtifactError: They have no such prompt in common.
        """
        cells = {"source": source} | ({} if by == "all" else {by: group})
        return paired_difference(self.sums(), (first, second), metric, cells, draws=draws, seed=seed)

    def to_pandas(self) -> "pd.DataFrame":
        """The divergences, one row per number; `layers` and `tokens` are tables of the same form."""
        pandas = require("pandas", "A table of divergences")
        return pandas.DataFrame([row.to_dict() for row in self.rows])

    def sums(self) -> "pd.DataFrame":
        """The sums behind the table: one row per model, sequence, token class and bucket, with sums and the count ``n``.

        Sequences have their id, prompt, task, skill, domain, source and temperature, so that any other breakdown is exact.
        """
        return sums_frame(self.folder)

    @classmethod
    def load(cls, path: Path | str) -> "DivergenceResult":
        """Read a finished stage folder.

        Raises:
            ArtifactError: The folder is missing, unfinished or another stage's, or its file is damaged.
        """
        folder = Path(path)
        require_stage(folder, "drift")
        return cls.checked({**read_json(folder / RESULT_FILE), "folder": folder}, folder / RESULT_FILE)
