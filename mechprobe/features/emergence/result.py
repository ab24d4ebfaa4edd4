"""What the emergence stage found, as files and as typed values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechprobe.artifacts import read_json, read_manifest, write_bytes, write_json
from mechprobe.errors import ArtifactError
from mechprobe.features.emergence.claim import Claim, Clause
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
        curves: The numbers of `mechprobe.features.emergence.curves`, with intervals over features.
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
    """One arm in dictionaries of base and one checkpoint each, matched by decoder.

    Attributes:
        name: Of the arm.
        checkpoints: Model names in order.
        overlap: Matched |A ∩ B| / top of the sets of highest NRN; row's features looked for in the column's.
        found_share: Share of the row's live features found again in the column's dictionary.
        ceiling: The two numbers for two dictionaries of the last checkpoint that differ in their seed alone.
        fve: Smallest FVE of each dictionary on held-out tokens.
        top: Size of the sets.
        min_cosine: From which a feature counts as found again.
    """

    name: str
    checkpoints: tuple[str, ...]
    overlap: Matrix
    found_share: Matrix
    ceiling: dict[str, float]
    fve: list[float]
    top: int
    min_cosine: float


@dataclass(frozen=True)
class CausalCourse:
    """Causal strength over one arm (RelIE, arXiv 2509.05291), first seed.

    Attributes:
        name: Of the arm.
        models: Base and the checkpoints.
        n_samples: Held-out samples.
        metric: Mean metric of each model (log-probability of the response tokens, nats).
        departure: Effect-weighted |IE_c − IE_base| of sizes, Σ||IE_c| − |IE_base|| / Σ(|IE_c| + |IE_base|) (ours).
        rank_correlation: Spearman's, of NRN with pairwise RelIE over the features with the upper half of effects.
        completeness_gap: What the integration path misses, as a share, per model.
    """

    name: str
    models: tuple[str, ...]
    n_samples: int
    metric: list[float]
    departure: list[float]
    rank_correlation: list[float]
    completeness_gap: list[float]


@dataclass(frozen=True)
class Emergence:
    """What `mechprobe.emergence` found.

    Attributes:
        folder: The stage folder.
        layout: ``arms`` or ``together``.
        arms: Arm to its course in the dictionary of each seed.
        pairs: Arm to its course in pairwise dictionaries; empty when they were not asked for.
        causal: Arm to RelIE; empty when it was not asked for.
        quality: Dictionary to FVE per model, L0 and dead share on held-out tokens.
        claim: The paper's claim; None where there are no arms ``sft`` and ``rl``.
    """

    folder: Path
    layout: str
    arms: dict[str, tuple[ArmCourse, ...]]
    pairs: dict[str, PairCourse]
    causal: dict[str, CausalCourse]
    quality: dict[str, Any]
    claim: Claim | None

    def table(self, arm: str, seed: int | None = None) -> pd.DataFrame:
        """One row per feature of an arm's dictionary (the first seed's when None).

        Columns: ``feature``, ``alive``, ``kind``, ``onset`` (model name), ``half_rise``, ``half_life``,
        ``persistence``, ``peak``, and per model ``norm_``, ``share_``, per checkpoint ``nrn_``, ``confirmed_``, and
        ``ie_`` and ``relie_`` of every model where RelIE was measured.

        Raises:
            ArtifactError: There is no such arm or seed.
        """
        seeds = [course.seed for course in self.arms.get(arm, ())]
        chosen = seeds[0] if seed is None and seeds else seed
        if chosen not in seeds:
            raise ArtifactError(f"{self.folder} has no table of arm '{arm}' and seed {seed}; it has {list(self.arms)}.")
        return pd.read_parquet(self.folder / table_file(arm, int(chosen)))

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `Emergence.load` reads it back."""
        value = asdict(self)
        del value["folder"]
        return value

    def save(self, tables: Mapping[str, pd.DataFrame]) -> list[str]:
        """Write the result and its tables (file name to table) into the folder; returns the file names."""
        for name, frame in tables.items():
            write_bytes(self.folder / name, frame.to_parquet(index=False))
        write_json(self.folder / RESULT_FILE, self.to_json())
        return [RESULT_FILE, *tables]

    @classmethod
    def load(cls, folder: Path | str) -> "Emergence":
        """Read a finished stage folder.

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
            pairs={name: PairCourse(**_tuples(item, "checkpoints")) for name, item in data["pairs"].items()},
            causal={name: CausalCourse(**_tuples(item, "models")) for name, item in data["causal"].items()},
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


def _claim(item: dict[str, Any]) -> Claim:
    clauses = tuple(
        Clause(**{**_tuples(clause), "differences": tuple(_interval(cell) for cell in clause["differences"])})
        for clause in item["clauses"]
    )
    first, second = item["sentences"]
    return Claim((item["arms"][0], item["arms"][1]), clauses, (first, second), item["rule"])
