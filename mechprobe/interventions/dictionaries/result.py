"""Typed records of ``dictionary_seeds.json``; effects are those of `mechprobe.interventions.result_rows`."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mechprobe.display import columns_of
from mechprobe.environment import require
from mechprobe.interventions.result import StageResult
from mechprobe.interventions.result_rows import Change
from mechprobe.results import IntervalNumbers, Number, Result

if TYPE_CHECKING:
    import pandas as pd

SEEDS_FILE = "dictionary_seeds.json"


class SeedDictionary(Result):
    """One dictionary of the comparison.

    Attributes:
        seed: Its training seed.
        fingerprint: Of its weights.
        trusted: Whether it passes the quality gate.
        n_live: Features that are not dead.
        n_features: Features of its causal set.
        note: Why there is no set and no verdict; else empty.
    """

    seed: int
    fingerprint: str
    trusted: bool
    n_live: int
    n_features: int
    note: str = ""


class FoundAgain(Result):
    """What one dictionary finds again of the run's own. Shares have Wilson intervals.

    Attributes:
        seed: Training seed of the other dictionary.
        live: Share of the own live features that have a partner in it; a random set of them has this share, too.
        anywhere: Share of the own causal set that has a partner anywhere in it.
        p_anywhere: Probability that a random set of live features has at least this share (hypergeometric).
        in_set: Share of the own causal set whose partner is in the causal set of the other dictionary.
        in_set_chance: Expectation of ``in_set`` where a random set of live features, of equal size, takes the place of the
            other dictionary's causal set.
        p_in_set: Probability that such a set has at least this share (hypergeometric).
        all_pairs: Whether all pairs were candidates, see `mechprobe.features.validation.matching`.
    """

    seed: int
    live: IntervalNumbers
    anywhere: IntervalNumbers
    p_anywhere: Number
    in_set: IntervalNumbers
    in_set_chance: Number
    p_in_set: Number
    all_pairs: bool


class EditOverSeeds(Result):
    """The pooled effect and the verdict of one main edit in every dictionary, in the order of `DictionarySeeds.dictionaries`.

    Attributes:
        model, edit: The host and the text of the edit.
        n: Samples.
        verdicts: One verdict per dictionary; `mechprobe.interventions.verdicts.rule` lists them.
        n_same: Dictionaries with the verdict of the run's own, which counts, too.
        against_rivals: What each set does beside its rivals, see `mechprobe.interventions.verdicts.rivals`; empty where none ran.
        n_same_rivals: Dictionaries that say of the rivals what the run's own says, which counts, too.
        effects: One effect per dictionary, in the claimed direction; NaN where it has no set.
        readouts: The read-out of each, which a run may choose per dictionary; None where there is none.
        median, smallest, largest: Of the effects.
    """

    model: str
    edit: str
    n: int
    verdicts: list[str]
    n_same: int
    against_rivals: list[str]
    n_same_rivals: int
    effects: list[Change]
    readouts: list[str | None]
    median: Number
    smallest: Number
    largest: Number


class DictionarySeeds(StageResult):
    """The same verdict over several dictionaries; the first is the run's own, with which the others are compared.

    Attributes:
        site, rule_of_features: Where features are edited, and the specification by which every dictionary chose its set.
        min_cosine: Smallest cosine of the decoders, over all models together, at which a feature counts as found again.
        features: The own causal set, best first.
        found_by: Number of other dictionaries whose causal set has the partner of each of these features.
        dictionaries: The dictionaries by seed.
        found_again: One record per other dictionary.
        edits: One record per main edit.
        sentence: The comparison in words.
    """

    FILE: ClassVar[str] = SEEDS_FILE

    site: str
    rule_of_features: str
    min_cosine: float
    features: list[int]
    found_by: list[int]
    dictionaries: list[SeedDictionary]
    found_again: list[FoundAgain]
    edits: list[EditOverSeeds] = Field(default_factory=list)
    sentence: str = ""

    def _in_short(self) -> str:
        return f"{len(self.dictionaries)} dictionaries at {self.site}; {self.sentence}"

    def to_pandas(self) -> "pd.DataFrame":
        """One row per main edit and dictionary: the verdict, and the pooled effect with its interval."""
        rows = [
            {"model": row.model, "edit": row.edit, "seed": found.seed, "n_features": found.n_features, "n": row.n}
            | columns_of("effect", effect)
            | {"verdict": verdict}
            for row in self.edits
            for found, effect, verdict in zip(self.dictionaries, row.effects, row.verdicts, strict=True)
        ]
        return require("pandas", "The table of dictionaries").DataFrame(rows)
