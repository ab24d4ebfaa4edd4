"""What the emergence stage found, as files and as typed values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechprobe.emergence.claim import Claim, Clause
from mechprobe.emergence.overlap import SeedSpread, over_seeds
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, write_bytes, write_json
from mechprobe.stage_folder import read_manifest
from mechprobe.statistics import Interval

RESULT_FILE = "emergence.json"

Matrix = list[list[float]]


@dataclass(frozen=True)
class ArmCourse:
    """One arm in the dictionary of one seed.

    Attributes:
        name: Of the arm.
        seed: Of the dictionary.
        base: Name of the model before post-training.
        checkpoints: Model names in order.
        labels: Short names of the checkpoints.
        progress: Share of training done at base and at each checkpoint.
        spaced_by: ``steps`` or ``checkpoints``.
        n_alive: Features that fire.
        kinds: How many features are of each kind.
        curves: The numbers of `mechprobe.emergence.curves`, with intervals over features.
        overlap: |A ∩ B| / top of the sets of highest NRN, checkpoint by checkpoint.
        jaccard: |A ∩ B| / |A ∪ B|.
        churn: Share of each set that the next does not have.
        top: Size of the sets.
        chance: Overlap of two random sets of that size.
    """

    name: str
    seed: int
    base: str
    checkpoints: tuple[str, ...]
    labels: tuple[str, ...]
    progress: tuple[float, ...]
    spaced_by: str
    n_alive: int
    kinds: dict[str, int]
    curves: dict[str, list[Interval]]
    overlap: Matrix
    jaccard: Matrix
    churn: list[float]
    top: int
    chance: float


@dataclass(frozen=True)
class PairCourse:
    """One arm in dictionaries of base and one checkpoint each, matched by decoder, in one repetition.

    Attributes:
        name: Of the arm.
        seed: Of the dictionaries over checkpoints that the repetition stands beside; each dictionary has its own.
        checkpoints: Model names in order.
        overlap: Matched |A ∩ B| / top of the sets of highest NRN; row's features looked for in the column's.
        found_share: Share of the row's live features found again in the column's dictionary.
        ceiling: The two numbers for two dictionaries of the last checkpoint that differ in their seed alone.
        fve: Smallest FVE of each dictionary on held-out tokens.
        top: Size of the sets.
        min_cosine: From which a feature counts as found again.
    """

    name: str
    seed: int
    checkpoints: tuple[str, ...]
    overlap: Matrix
    found_share: Matrix
    ceiling: dict[str, float]
    fve: list[float]
    top: int
    min_cosine: float


@dataclass(frozen=True)
class CausalCourse:
    """Causal strength over one arm (RelIE, arXiv 2509.05291), first seed. Intervals, biases and ``departure`` are ours.

    Intervals are of the bootstrap over groups of held-out samples (`mechprobe.selection.rankings.relie_intervals`), their n is the
    number of groups; NaN where there is none, see `interval_note`.

    Attributes:
        name: Of the arm.
        models: Base and the checkpoints.
        n_samples: Held-out samples.
        n_groups: Prompts that they answer, which are what is drawn; 0 in the result of a version without intervals.
        draws: Bootstrap draws.
        metric: Mean metric of each model (log-probability of the response tokens, nats).
        departure: Effect-weighted |IE_c − IE_base| of sizes, Σ||IE_c| − |IE_base|| / Σ(|IE_c| + |IE_base|).
        departure_bias: Mean of the draws minus the value. Noise of few samples adds to absolute differences: where this is
            clearly above 0, the value itself is too high by about as much or more.
        rank_correlation: Spearman's, of NRN with pairwise RelIE over the features with the upper half of effects.
        rank_correlation_bias: Mean of the draws minus the value; noise draws a correlation towards 0.
        completeness_gap: What the integration path misses, as a share, per model.
    """

    name: str
    models: tuple[str, ...]
    n_samples: int
    n_groups: int
    draws: int
    metric: list[float]
    departure: list[Interval]
    departure_bias: list[float]
    rank_correlation: list[Interval]
    rank_correlation_bias: list[float]
    completeness_gap: list[float]

    @property
    def interval_note(self) -> str:
        """What the intervals are over, or why there is none, in a sentence."""
        if self.n_groups == 0:
            return "RelIE has no interval: a version without it made this result; --force makes it again."
        if self.n_groups == 1:
            return "RelIE has no interval: all its samples answer one prompt."
        return (
            f"Intervals of RelIE: 95 % bootstrap over the {self.n_groups} prompts of {self.n_samples} held-out samples, "
            "in one dictionary."
        )


@dataclass(frozen=True)
class Emergence:
    """What `mechprobe.emergence` found.

    Attributes:
        folder: The stage folder.
        layout: ``arms`` or ``together``.
        arms: Arm to its course in the dictionary of each seed.
        pairs: Arm to its course in the pairwise dictionaries of each seed; empty when they were not asked for.
        causal: Arm to RelIE; empty when it was not asked for.
        quality: Dictionary to FVE per model, L0 and dead share on held-out tokens.
        claim: The paper's claim; None where there are no arms ``sft`` and ``rl``.
    """

    folder: Path
    layout: str
    arms: dict[str, tuple[ArmCourse, ...]]
    pairs: dict[str, tuple[PairCourse, ...]]
    causal: dict[str, CausalCourse]
    quality: dict[str, Any]
    claim: Claim | None

    def table(self, arm: str, seed: int | None = None) -> pd.DataFrame:
        """One row per feature of an arm's dictionary (the first seed's when None).

        Columns: ``feature``, ``alive``, ``kind``, ``onset`` (model name), ``half_rise``, ``half_life``,
        ``persistence``, ``peak``, and per model ``norm_``, ``share_``, per checkpoint ``nrn_``, ``confirmed_``, and
        ``ie_``, ``relie_``, ``low_relie_`` and ``high_relie_`` (95 % bootstrap interval over prompts) of every model where
        RelIE was measured, and then ``n_relie``, the prompts in which the feature has an effect: no interval below 2, and
        a rough one for a few.

        Raises:
            ArtifactError: There is no such arm or seed.
        """
        seeds = [course.seed for course in self.arms.get(arm, ())]
        chosen = seeds[0] if seed is None and seeds else seed
        if chosen not in seeds:
            raise ArtifactError(f"{self.folder} has no table of arm '{arm}' and seed {seed}; it has {list(self.arms)}.")
        return pd.read_parquet(self.folder / table_file(arm, int(chosen)))

    def over_seeds(self, arm: str) -> dict[str, SeedSpread]:
        """Overlaps of an arm over the seeds, by name.

        ``overlap`` and ``jaccard``; of dictionaries trained apart ``pairs_overlap``, ``pairs_found_share``,
        ``ceiling_overlap`` and ``ceiling_found_share``.
        """
        courses, pairs = self.arms[arm], self.pairs.get(arm, ())
        found = {name: over_seeds([getattr(course, name) for course in courses]) for name in ("overlap", "jaccard")}
        if pairs:
            for name in ("overlap", "found_share"):
                found[f"pairs_{name}"] = over_seeds([getattr(course, name) for course in pairs])
                found[f"ceiling_{name}"] = over_seeds([[course.ceiling[name]] for course in pairs])
        return found

    @property
    def interval_notes(self) -> list[str]:
        """What the intervals are over, and which numbers have none."""
        notes = ["Intervals of curves: 95 % bootstrap over the features of one dictionary."]
        notes += [course.interval_note for course in list(self.causal.values())[:1]]  # all arms read the same samples
        seeds = max((len(courses) for courses in self.arms.values()), default=1)
        if seeds == 1:
            return [
                *notes,
                "Overlaps of the sets of highest NRN over trainings of the dictionary: one seed: no interval (--seeds N).",
            ]
        notes.append(
            f"Overlaps of the sets of highest NRN: mean [smallest, largest] of {seeds} seeds of the dictionary."
        )
        if any(len(repeats) == 1 for repeats in self.pairs.values()):
            notes.append("Overlaps of dictionaries trained apart: one seed: no interval.")
        return notes

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `Emergence.load` reads it back, but for ``over_seeds`` and ``interval_notes``, which follow from the rest."""
        value = asdict(self)
        del value["folder"]
        value["over_seeds"] = {
            arm: {
                name: {
                    "mean": spread.mean.tolist(),
                    "low": spread.low.tolist(),
                    "high": spread.high.tolist(),
                    "n": spread.n,
                }
                for name, spread in self.over_seeds(arm).items()
            }
            for arm in self.arms
        }
        value["interval_notes"] = self.interval_notes
        return value

    def save(self, tables: Mapping[str, pd.DataFrame]) -> list[str]:
        """Write the result and its tables (file name to table) into the folder; returns the file names."""
        for name, frame in tables.items():
            write_bytes(self.folder / name, frame.to_parquet(index=False))
        write_json(self.folder / RESULT_FILE, self.to_json())
        return [RESULT_FILE, *tables]

    @classmethod
    def load(cls, folder: Path | str) -> "Emergence":
        """Read a finished stage folder; what an earlier version did not measure is NaN there.

        Raises:
            ArtifactError: It is missing, unfinished or another stage's.
        """
        folder = Path(folder)
        if read_manifest(folder)["stage"] != "emergence":
            raise ArtifactError(f"{folder} is no emergence stage; give the folder written by `mechprobe emergence`.")
        data = read_json(folder / RESULT_FILE)
        claim = data["claim"]
        return cls(
            folder=folder,
            layout=data["layout"],
            arms={name: tuple(_course(item) for item in items) for name, items in data["arms"].items()},
            pairs={name: _pairs(item, data["arms"][name][0]["seed"]) for name, item in data["pairs"].items()},
            causal={name: _causal(item) for name, item in data["causal"].items()},
            quality=data["quality"],
            claim=None if claim is None else _claim(claim),
        )


def table_file(arm: str, seed: int) -> str:
    """File of the features of one arm in the dictionary of one seed."""
    return f"features_{arm}_seed{seed}.parquet"


def _tuples(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: tuple(value) if key in names else _numbers(value) for key, value in item.items()}


def _numbers(value: Any) -> Any:
    """JSON's null as NaN, where numbers are expected."""
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float("nan") if value is None else value


def _interval(item: list[Any]) -> Interval:
    value, low, high = (float("nan") if part is None else float(part) for part in item[:3])
    return Interval(value, low, high, int(item[3]))


def _course(item: dict[str, Any]) -> ArmCourse:
    curves = {name: [_interval(cell) for cell in cells] for name, cells in item["curves"].items()}
    rest = {key: value for key, value in item.items() if key != "curves"}
    return ArmCourse(**_tuples(rest, "checkpoints", "labels", "progress"), curves=curves)


def _pairs(items: list[dict[str, Any]] | dict[str, Any], first_seed: int) -> tuple[PairCourse, ...]:
    """Of every repetition; versions that trained pairwise dictionaries once wrote one, without its seed."""
    if isinstance(items, dict):
        items = [{"seed": first_seed, **items}]
    return tuple(PairCourse(**_tuples(item, "checkpoints")) for item in items)


def _causal(item: dict[str, Any]) -> CausalCourse:
    """Versions without intervals wrote plain numbers, and neither groups nor draws."""
    filled: dict[str, Any] = {"n_groups": 0, "draws": 0}
    for name in ("departure", "rank_correlation"):
        filled[f"{name}_bias"] = [None] * len(item[name])
    filled |= item
    for name in ("departure", "rank_correlation"):
        filled[name] = [_interval(cell if isinstance(cell, list) else [cell, None, None, 0]) for cell in item[name]]
    return CausalCourse(**_tuples(filled, "models"))


def _claim(item: dict[str, Any]) -> Claim:
    clauses = tuple(
        Clause(**{**_tuples(clause), "differences": tuple(_interval(cell) for cell in clause["differences"])})
        for clause in item["clauses"]
    )
    first, second = item["sentences"]
    return Claim((item["arms"][0], item["arms"][1]), clauses, (first, second), item["rule"])
