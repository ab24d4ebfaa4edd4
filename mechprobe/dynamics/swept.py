"""Curves of a sweep: the values of base and of the checkpoints of every arm, benchmark by benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.checkpoints import ArmSteps, arm_steps, length_beside
from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.detect import classify_curve
from mechprobe.dynamics.result import DipResult
from mechprobe.dynamics.scores import MIN_CHECKPOINTS, Scores, read_scores, read_values
from mechprobe.emergence.arms import all_arms, find_arms
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError, ConfigError, InputError, MechprobeError
from mechprobe.progress import progress
from mechprobe.records import Outcome, read_outcomes
from mechprobe.score_intervals import Z
from mechprobe.stage_folder import MANIFEST, input_hash, require_stage
from mechprobe.sweep.result import RESPONSES_FILE, BenchmarkInfo, CellResult, SweepResults
from mechprobe.sweep.stage import sweep

__all__ = ["Swept", "holds_checkpoints", "sweep"]
_CLOSE = 1e-9


class _Planned(NamedTuple):
    """One curve that will be classified."""

    arm: str
    benchmark: str
    course: ArmSteps

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.benchmark}"


@dataclass(frozen=True)
class Swept:
    """A finished sweep whose cells were checked, and the curves that it has.

    Attributes:
        results: The sweep.
        work: Folder of its cells.
        planned: The curves, benchmark after benchmark in each arm.
        notes: What has no curve, as sentences.
    """

    results: SweepResults
    work: Path
    planned: tuple[_Planned, ...]
    notes: tuple[str, ...]

    @classmethod
    def open(
        cls, folder: Path | str, work: Path | str | None, config: DynamicsConfig, arms: EmergenceConfig
    ) -> "Swept":
        """Read a sweep, and check that its cells are those of which its table was made.

        Args:
            folder: Stage folder of the sweep.
            work: Folder of its cells; ``benchmarks`` beside it if None.
            config: ``tasks`` chooses benchmarks.
            arms: ``arms``, and ``final_steps`` for models whose step the sweep does not know.

        Raises:
            ArtifactError: The sweep is not finished, or a cell is missing or was made again since.
            ConfigError: No arm has two checkpoints on any benchmark, or ``dynamics.tasks`` names another one.
        """
        folder = Path(folder)
        manifest = require_stage(folder, "sweep")
        work = folder.parent / "benchmarks" if work is None else Path(work)
        results = SweepResults.load(folder)
        _check_cells(results, work, manifest["inputs"], folder)
        planned, notes = _plan(results, _benchmarks(results, config), arms)
        return cls(results, work, tuple(planned), tuple(notes))

    @property
    def spaced_by(self) -> dict[str, Literal["steps", "checkpoints"]]:
        """Arm → how its checkpoints are spaced."""
        return {each.arm: each.course.spaced_by for each in self.planned}

    def plan_lines(self, config: DynamicsConfig) -> list[str]:
        """What would be classified, as lines."""
        arms = {each.arm: each.course for each in self.planned}
        shown = list(dict.fromkeys(each.benchmark for each in self.planned))
        return [
            *(f"arm {arm}: {', '.join(course.models)} (spaced by {course.spaced_by})" for arm, course in arms.items()),
            f"{len(self.planned)} curves of {', '.join(shown)}, each with {config.draws:,} simulated curves of each kind "
            "without a dip",
            *self.notes,
        ]

    def curves(self, config: DynamicsConfig) -> dict[str, DipResult]:
        """``arm/benchmark`` → result, each for itself; `InputError` names the curve that cannot be used."""
        found: dict[str, DipResult] = {}
        with progress(len(self.planned), "curves", unit="curves") as advance:
            for each in self.planned:
                found[each.name] = self._curve(each, config)
                advance(1, curve=each.name)
        return found

    def _curve(self, planned: _Planned, config: DynamicsConfig) -> DipResult:
        info, files = self.results.benchmarks[planned.benchmark], self.results.files[planned.benchmark]
        places = [self.work / files[model] for model in planned.course.models]
        outcomes = [_responses(place.parent / RESPONSES_FILE) for place in places]
        try:
            read = _scores(info, [CellResult.load(place) for place in places], outcomes)
            found = classify_curve(planned.course.steps, read, config)
        except MechprobeError as error:
            raise InputError(f"{planned.name}: {error}") from None
        return length_beside(found, outcomes, config.alpha)


def holds_checkpoints(folder: Path | str) -> bool:
    """Whether a folder is a finished sweep of an arm with two checkpoints or more."""
    if not (Path(folder) / MANIFEST).is_file():
        return False
    return any(len(models) >= MIN_CHECKPOINTS for models in SweepResults.load(Path(folder)).arms.values())


def _check_cells(results: SweepResults, work: Path, made_from: Mapping[str, str], folder: Path) -> None:
    for name, files in results.files.items():
        for model, file in files.items():
            cell = (work / file).parent
            if not cell.is_dir():
                raise ArtifactError(
                    f"{cell} is missing, the cell of {model} on {name}; give the folder of the cells of {folder} with --work."
                )
            if input_hash(cell) != made_from.get(f"{name} {model}"):
                raise ArtifactError(f"{cell} was made again after {folder}; run `mechprobe sweep` again to its end.")


def _benchmarks(results: SweepResults, config: DynamicsConfig) -> list[str]:
    chosen = results.order if config.tasks is None else list(config.tasks)
    unknown = next((name for name in chosen if name not in results.benchmarks), None)
    if unknown is not None:
        raise ConfigError(
            f"dynamics.tasks names '{unknown}', but the benchmarks of the sweep are {', '.join(results.order)}."
        )
    return chosen


def _plan(results: SweepResults, benchmarks: Sequence[str], arms: EmergenceConfig) -> tuple[list[_Planned], list[str]]:
    """The curves arm by arm, and a sentence for each benchmark without base and each arm with one checkpoint on it."""
    known = {model: step for model, step in results.steps.items() if step and model != results.base}
    asked = EmergenceConfig(base=results.base, arms=arms.arms, final_steps={**arms.final_steps, **known})
    planned, notes = [], []
    for name in benchmarks:
        models = [model for model in results.models if model in results.cells[name]]
        if results.base not in models:
            notes.append(f"{name} has no cell of {results.base}, so it has no curves.")
            continue
        unknown = next((m for m in models if isnan(results.cells[name][m].value.low)), None)
        if unknown is not None:
            notes.append(f"The value of {unknown} on {name} has no interval, so {name} has no curves.")
            continue
        for arm in find_arms(models, asked) if asked.arms else all_arms(models, results.base, asked.final_steps):
            if len(arm.checkpoints) >= MIN_CHECKPOINTS:
                planned.append(_Planned(arm.name, name, arm_steps(arm, results.base, asked)))
            elif arm.checkpoints[0] != arm.name:
                notes.append(f"Arm {arm.name} has one checkpoint on {name}, and a curve needs two.")
    if not planned:
        raise ConfigError(
            f"No arm of the sweep ({', '.join(results.models)}) has two checkpoints; sweep models named like "
            "rl@step_000040, for example with --checkpoints."
        )
    order = list(dict.fromkeys(each.arm for each in planned))
    return sorted(planned, key=lambda each: order.index(each.arm)), notes


def _responses(path: Path) -> list[Outcome]:
    return read_outcomes(path) if path.is_file() else []


def _scores(info: BenchmarkInfo, cells: Sequence[CellResult], outcomes: Sequence[Sequence[Outcome]]) -> Scores:
    """The evidence of a curve, base first: the numbers of every response where the value is their mean, else its error."""
    better = info.higher_is_better
    if not all(_is_mean(cell) for cell in cells):
        values = [cell.value.value for cell in cells]
        errors = [(cell.value.high - cell.value.low) / (2 * Z) for cell in cells]
        return read_scores(
            values[1:], values[0], n=None, responses=1, se=errors, cut=None, scale="auto", higher_is_better=better
        )
    items = list(cells[0].values)
    values = _numbers(cells, items)
    if not info.share or np.isnan(values).any() or values.min() < 0 or values.max() > 1:
        return read_values(values, share=info.share, higher_is_better=better)
    cut = _cut(items, outcomes, values.shape) if info.scorer == "rule" else None
    return read_scores(
        values[1:], values[0], n=None, responses=1, se=None, cut=cut, scale="auto", higher_is_better=better
    )


def _is_mean(cell: CellResult) -> bool:
    """Whether the value is the mean over the items; some metrics of lm-evaluation-harness are not."""
    found = cell.per_item
    return bool(found) and abs(sum(found.values()) / len(found) - cell.value.value) < _CLOSE


def _numbers(cells: Sequence[CellResult], items: Sequence[str]) -> Float[ndarray, "model item draw"]:
    n_draws = {len(row) for cell in cells for row in cell.values.values()}
    other = next((cell.model for cell in cells if set(cell.values) != set(items)), None)
    if other is not None or len(n_draws) > 1:
        what = "other items than base" if other is not None else "different numbers of responses to its items"
        raise InputError(f"{other or 'A model'} has {what}; sweep them again together.")
    rows = [[[np.nan if value is None else value for value in cell.values[item]] for item in items] for cell in cells]
    return np.array(rows, dtype=float)


def _cut(
    items: Sequence[str], outcomes: Sequence[Sequence[Outcome]], shape: tuple[int, ...]
) -> Float[ndarray, "model item draw"] | None:
    """Whether each response was cut; None where none was, or where it is not known of all."""
    if not all(own and all(one.finish for one in own) for own in outcomes):
        return None
    place, found = {item: index for index, item in enumerate(items)}, np.zeros(shape)
    for model, own in enumerate(outcomes):
        for one in own:
            found[model, place[one.sample_id], one.draw] = one.cut
    return found if found.any() else None
