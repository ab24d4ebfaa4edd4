"""Quantities of behaviour: skills and lengths of `mechprobe evaluate`, benchmarks and safety of `mechprobe sweep`, drift of a profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mechprobe.drift.probe.result import ProbeResult
from mechprobe.records import Outcome, Outcomes, read_outcomes
from mechprobe.report.timeline.measured import Measured, Unit, mean_of, of_items
from mechprobe.statistics import Interval, share_interval
from mechprobe.sweep.result import RESPONSES_FILE, BenchmarkInfo, CellResult, SweepResults

SKILLS, BENCHMARKS, SAFETY, LENGTH, BEHAVIOUR = (
    "skills", "benchmarks", "safety", "response length", "behaviour drift",
)  # fmt: skip
OUTCOMES_FILE = "outcomes.jsonl"
NO_ITEMS = "values of single items are not kept"


def of_outcomes(folder: Path) -> list[Measured]:
    """Right responses by task, their mean over the tasks, and the mean length of all responses."""
    outcomes = Outcomes(read_outcomes(folder / OUTCOMES_FILE))
    tasks, lengths = [], []
    for task in outcomes.tasks:
        ids = outcomes.sample_ids(task)
        kept = {model: _records(outcomes, model, task, ids) for model in outcomes.models}
        kept = {model: records for model, records in kept.items() if records}
        right = {m: np.array([[r.outcome == "right" for r in row] for row in rows]) for m, rows in kept.items()}
        points = {model: share_interval(flags) for model, flags in right.items()}
        rows = {model: flags.mean(axis=1) for model, flags in right.items()}
        tasks.append(of_items(f"right ({task})", SKILLS, f"task {task}", rows, unit="percent", points=points))
        if all(record.finish for records in kept.values() for row in records for record in row):
            tokens = {
                m: np.array([np.mean([r.n_response_tokens for r in row]) for row in rows]) for m, rows in kept.items()
            }
            lengths.append(of_items(f"length ({task})", LENGTH, f"task {task}", tokens, unit="tokens"))
    found = [*tasks]
    usable = [task for task in tasks if task.draws]
    if usable:
        found.insert(0, mean_of(usable, "right (mean of tasks)", headline=True))
    if lengths and all(each.draws for each in lengths):
        found.append(mean_of(lengths, "length (mean of tasks)", headline=True))
    return found


def _records(outcomes: Outcomes, model: str, task: str, ids: Sequence[str]) -> list[list[Outcome]]:
    """Responses of a model to every sample; empty if some sample was not asked, or numbers of responses differ."""
    known = {record.sample_id for record in outcomes.records if record.model == model and record.task == task}
    if not known.issuperset(ids):
        return []
    rows = [outcomes.draws(model, task, sample) for sample in ids]
    return rows if len({len(row) for row in rows}) == 1 else []


def of_sweep(found: SweepResults, work: Path) -> list[Measured]:
    """Every benchmark, the mean of those that are shares of right responses, and what safety benchmarks say besides.

    Args:
        found: The table of the sweep.
        work: Folder of its cells, which hold the values of items.
    """
    parts: list[Measured] = []
    for name in found.order:
        info = found.benchmarks[name]
        cells = {model: _cell(found, work, name, model) for model in found.models if model in found.cells[name]}
        parts += [_benchmark(info, cells), *_refusals(info, found.cells[name])]
    means = [part for part in parts if part.panel == BENCHMARKS and part.draws and part.unit == "percent"]
    rising = [part for part in means if found.benchmarks[part.name].higher_is_better]
    if len(rising) > 1:
        parts.insert(0, mean_of(rising, "mean of benchmarks", headline=True))
    return parts


def _cell(found: SweepResults, work: Path, name: str, model: str) -> CellResult:
    """A cell with the values of its items, where its file is still there."""
    path = work / found.files.get(name, {}).get(model, "")
    return CellResult.load(path) if path.is_file() else found.cells[name][model]


def _benchmark(info: BenchmarkInfo, cells: Mapping[str, CellResult]) -> Measured:
    panel = SAFETY if info.group == "safety" else BENCHMARKS
    points = {model: cell.value for model, cell in cells.items()}
    means = {model: cell.per_item for model, cell in cells.items()}
    shared = [item for item in next(iter(means.values()), {}) if all(item in row for row in means.values())]
    unit: Unit = "percent" if info.share else "plain"
    if len(shared) < 2:
        return Measured(info.name, panel, points, unit=unit, unranked=NO_ITEMS)
    rows = {model: np.array([row[item] for item in shared]) for model, row in means.items()}
    made = of_items(info.name, panel, f"benchmark {info.name}", rows, unit=unit)
    if any(len(row) != len(shared) for row in means.values()):  # undecided responses: other items in other models
        points = made.points
    return Measured(
        made.name, panel, points, made.draws, made.n, made.units, made.unit, headline=panel == SAFETY
    )  # fmt: skip


def _refusals(info: BenchmarkInfo, cells: Mapping[str, CellResult]) -> list[Measured]:
    """The share of refusals that a safety benchmark reports beside its own metric."""
    points = {model: cell.metrics["refused"] for model, cell in cells.items() if "refused" in cell.metrics}
    if info.group != "safety" or not points:
        return []
    return [Measured(f"refused ({info.name})", SAFETY, points, unit="percent", unranked=NO_ITEMS)]


def lengths_of_sweep(found: SweepResults, work: Path) -> list[Measured]:
    """Mean length of the responses to every benchmark whose responses are kept, and the mean over benchmarks."""
    parts = []
    for name in found.order:
        rows = {}
        for model, file in found.files.get(name, {}).items():
            path = (work / file).parent / RESPONSES_FILE
            records = read_outcomes(path) if path.is_file() else []
            tokens: dict[str, list[int]] = {}
            for record in records:
                if record.finish:
                    tokens.setdefault(record.sample_id, []).append(record.n_response_tokens)
            rows[model] = {item: float(np.mean(each)) for item, each in tokens.items()}
        shared = [item for item in next(iter(rows.values()), {}) if all(item in row for row in rows.values())]
        if len(shared) > 1:
            values = {model: np.array([row[item] for item in shared]) for model, row in rows.items()}
            parts.append(of_items(f"length ({name})", LENGTH, f"benchmark {name}", values, unit="tokens"))
    return [mean_of(parts, "length (mean of benchmarks)", headline=True), *parts] if parts else []


def of_probe(found: ProbeResult) -> list[Measured]:
    """Distance of the profile of skills from that of base."""
    points = {found.base: Interval(0.0, 0.0, 0.0, 0)}
    for course in found.behaviour["right"].arms.values():
        for point in course.points:
            norm = point.drift_l1
            points[point.model] = Interval(norm.value, norm.low, norm.high, norm.n)
    why = "noise alone gives a distance above 0"
    return [Measured("distance of skill profiles (L1)", BEHAVIOUR, points, headline=True, unranked=why)]
