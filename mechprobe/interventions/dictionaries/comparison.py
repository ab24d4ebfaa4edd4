"""Sets and verdicts of dictionaries that were trained with different seeds, compared with those of the first.

Features are paired one to one by the cosine of their decoders, all models side by side
(`mechprobe.features.validation.matching`). A feature of the first dictionary is found again where the cosine of its pair reaches
the threshold. Dictionaries of equal quality share about 30 % of their latents (Paulo and Belrose 2025, arXiv 2501.16615), so the
share of a set that is found again is read beside that of all live features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.features.validation.matching import Matching, match_dictionaries
from mechprobe.formatting import decimal, listing, percent, points
from mechprobe.interventions.dictionaries.result import DictionarySeeds, EditOverSeeds, FoundAgain, SeedDictionary
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.result_rows import Effect, Verdict
from mechprobe.interventions.verdicts.rule import NO_VERDICT
from mechprobe.statistics import wilson_interval
from sae_training import Crosscoder

NOT_COMPARED = "not compared"
"""What is said of rivals where a dictionary has none."""
NO_EFFECT = Effect(float("nan"), float("nan"), float("nan"))


class Judged(NamedTuple):
    """The interventions on the set of one dictionary; None where there is no set, and ``note`` says why."""

    results: InterventionResults | None
    note: str = ""

    @property
    def features(self) -> list[int]:
        """The causal set, best first."""
        return self.results.features if self.results else []

    def verdict(self, model: str, edit: str) -> Verdict | None:
        """The pooled verdict on one main edit; None where there is none."""
        rows = self.results.pooled_verdicts if self.results else []
        return next((row for row in rows if (row.model, row.edit) == (model, edit)), None)

    def against_rivals(self, model: str, edit: str) -> str:
        """What the set does beside its rivals; empty where none ran."""
        rows = self.results.comparisons if self.results else []
        return next((row.verdict for row in rows if (row.model, row.edit) == (model, edit)), "")


@dataclass(frozen=True)
class JudgedDictionary:
    """A dictionary with its feature table, whether it passes the quality gate, and the interventions on its set."""

    seed: int
    crosscoder: Crosscoder
    table: FeatureTable
    trusted: bool
    judged: Judged

    @property
    def alive(self) -> Bool[ndarray, " d_sae"]:
        """Features that are not dead."""
        return ~self.table.dead

    def record(self) -> SeedDictionary:
        """What the result says of it."""
        return SeedDictionary(
            seed=self.seed,
            fingerprint=self.crosscoder.fingerprint,
            trusted=self.trusted,
            n_live=int(self.alive.sum()),
            n_features=len(self.judged.features),
            note=self.judged.note,
        )


def compare(own: JudgedDictionary, others: Iterable[JudgedDictionary], *, min_cosine: float) -> DictionarySeeds:
    """Compare dictionaries with ``own``, which must have results. One of the others is held at a time."""
    results, chosen = own.judged.results, own.judged.features
    assert results is not None
    records, judged = [own.record()], [own.judged]
    found: list[FoundAgain] = []
    found_by = np.zeros(len(chosen), dtype=int)
    for other in others:
        matching = match_dictionaries((own.crosscoder, own.table), (other.crosscoder, other.table), min_cosine)
        records.append(other.record())
        judged.append(other.judged)
        found.append(found_again(chosen, other.judged.features, matching, alive=other.alive, seed=other.seed))
        found_by += partners_in(chosen, other.judged.features, matching)
    made = DictionarySeeds(
        site=results.site,
        rule_of_features=results.rule_of_features,
        min_cosine=min_cosine,
        features=chosen,
        found_by=found_by.tolist(),
        dictionaries=records,
        found_again=found,
        edits=[_over_seeds(row, judged) for row in results.pooled_verdicts],
    )
    return made.model_copy(update={"sentence": sentence(made)})


def partners_in(first: Sequence[int], second: Sequence[int], matching: Matching) -> Bool[ndarray, " first"]:
    """Which features of the set ``first`` are found again with a partner in the set ``second``."""
    members = set(second)
    return np.array([partner in members for partner in matching.translate(first)], dtype=bool)


def found_again(
    first: Sequence[int], second: Sequence[int], matching: Matching, *, alive: Bool[ndarray, " second"], seed: int
) -> FoundAgain:
    """How much of the set ``first`` the other dictionary, with the set ``second``, finds again.

    ``alive`` are the live features of the other dictionary, and ``seed`` is its training seed.
    """
    n, n_live = len(first), int(matching.alive.sum())
    n_all, n_found = int(matching.found.sum()), int(matching.found[list(first)].sum())
    n_in_set = int(partners_in(first, second, matching).sum())
    n_other, n_second = int(alive.sum()), int(alive[list(second)].sum())
    return FoundAgain(
        seed=seed,
        live=wilson_interval(n_all, n_live),
        anywhere=wilson_interval(n_found, n),
        p_anywhere=_at_least(n_found, n_live, n_all, int(matching.alive[list(first)].sum())),
        in_set=wilson_interval(n_in_set, n),
        in_set_chance=n_found * n_second / (n_other * n) if n and n_other else float("nan"),
        p_in_set=_at_least(n_in_set, n_other, n_found, n_second),
        all_pairs=matching.all_pairs,
    )


def _at_least(count: int, n: int, n_marked: int, n_drawn: int) -> float:
    """P(at least ``count`` of ``n_drawn`` features, drawn from ``n`` without replacement, are among ``n_marked``)."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(count - 1, n, n_marked, n_drawn)) if n_drawn else float("nan")


def _over_seeds(own: Verdict, judged: Sequence[Judged]) -> EditOverSeeds:
    """One main edit in every dictionary; ``own`` is the pooled verdict of the first."""
    rows = [each.verdict(own.model, own.edit) for each in judged]
    verdicts = [row.verdict if row else f"{NO_VERDICT}{each.note}" for row, each in zip(rows, judged, strict=True)]
    effects = [row.effect if row else NO_EFFECT for row in rows]
    rivals = [each.against_rivals(own.model, own.edit) for each in judged]
    values = [effect.value for effect in effects if effect.value == effect.value]
    return EditOverSeeds(
        model=own.model,
        edit=own.edit,
        n=own.n,
        verdicts=verdicts,
        n_same=verdicts.count(own.verdict),
        against_rivals=rivals,
        n_same_rivals=rivals.count(rivals[0]),
        effects=effects,
        readouts=[row.readout if row else None for row in rows],
        median=median(values) if values else float("nan"),
        smallest=min(values, default=float("nan")),
        largest=max(values, default=float("nan")),
    )


def sentence(found: DictionarySeeds) -> str:
    """The comparison in words."""
    seeds, rows = [str(each.seed) for each in found.dictionaries], found.found_again
    first, others = seeds[0], seeds[1:]
    sets = "The set of seed" if len(others) == 1 else "The sets of seeds"
    edits = "; ".join(_edit_phrase(edit, others) for edit in found.edits)
    return (
        f"{sets} {listing(others)} {'has' if len(others) == 1 else 'have'} {_shares([row.in_set.value for row in rows])} of the "
        f"{len(found.features)} features of seed {first} again, by chance {_shares([row.in_set_chance for row in rows], 1)}. "
        f"Anywhere in the dictionary are {_shares([row.anywhere.value for row in rows])} of them, and "
        f"{_shares([row.live.value for row in rows])} of all live features (cosine ≥ {decimal(found.min_cosine)}). "
        f"Dictionaries with the verdict of seed {first}, and median [range] of the effect in points: {edits}."
    )


def _edit_phrase(edit: EditOverSeeds, others: Sequence[str]) -> str:
    spread = f"{points(edit.median)} [{points(edit.smallest)}, {points(edit.largest)}]"
    n, other = len(edit.verdicts), _different(edit.verdicts, others)
    rivals = ""
    if edit.against_rivals[0]:
        different = _different(edit.against_rivals, others)
        rivals = f", and {edit.n_same_rivals} of {n} against rivals{different}"
    return f"{edit.edit} in {edit.model} {edit.n_same} of {n}{other}{rivals}, {spread}"


def _different(words: Sequence[str], others: Sequence[str]) -> str:
    """The verdicts that are not the first dictionary's, in parentheses."""
    found = [
        f"seed {seed} {word or NOT_COMPARED}" for seed, word in zip(others, words[1:], strict=True) if word != words[0]
    ]
    return f" ({', '.join(found)})" if found else ""


def _shares(values: Sequence[float], digits: int = 0) -> str:
    """Shares in percent: their range, or the one value."""
    ends = dict.fromkeys(percent(value, digits) for value in (min(values), max(values)))
    return f"{' to '.join(ends)} %"
