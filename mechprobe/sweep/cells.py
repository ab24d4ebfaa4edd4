"""The cells of a sweep: each is a stage folder, so that finished ones are never made again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechprobe.files import dump_json, read_json, write_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.progress import Meter, progress
from mechprobe.ranks import in_turns, sharing
from mechprobe.records import Outcome, Outcomes, read_outcomes
from mechprobe.stage_folder import MANIFEST, UNFINISHED, Stage
from mechprobe.sweep.benchmarks import Benchmark
from mechprobe.sweep.numbers import decided
from mechprobe.sweep.registry import file_name
from mechprobe.sweep.result import CELL_FILE, ENGINE_FILE, RESPONSES_FILE, CellResult, SweepResults

_RESPONSES = (RESPONSES_FILE, ENGINE_FILE)
"""What scoring reads."""


class Cells:
    """The cells of a sweep, each a stage folder ``<work>/<benchmark>/<model>``."""

    def __init__(
        self, work: Path, benchmarks: Sequence[Benchmark], family: ModelFamily | None, *, force: bool = False
    ) -> None:
        self.work, self.benchmarks, self.family, self.force = work, benchmarks, family, force
        self._made_again: set[Path] = set()
        """Cells that ``force`` has begun again in this command."""

    @property
    def models(self) -> list[str]:
        """All models that some benchmark has, those of the family first."""
        known = self.family.names if self.family is not None else ()
        return list(dict.fromkeys([*known, *(model for each in self.benchmarks for model in each.models)]))

    def folder(self, benchmark: Benchmark, model: str) -> Path:
        """The folder of a cell."""
        return self.work / file_name(benchmark.info.name) / model

    def check(self) -> None:
        """Raise `ArtifactError` for the first cell whose folder holds other work, before any model runs."""
        for benchmark in self.benchmarks:
            for model in benchmark.models:
                work = self._work_of(benchmark, model)
                if _kept(self.folder(benchmark, model), work):
                    work["remake"] = True
                Stage.check(self.folder(benchmark, model), force=self.force, **work)

    def plan(self) -> tuple[list[str], dict[str, Any]]:
        """What would be made, as lines and as a JSON value; errors are those of `check`."""
        self.check()
        pairs = [(benchmark, model) for benchmark in self.benchmarks for model in benchmark.models]
        done = 0 if self.force else sum((self.folder(*pair) / MANIFEST).is_file() for pair in pairs)
        infos = [benchmark.info for benchmark in self.benchmarks]
        lines = [f"{len(pairs)} cells ({len(self.models)} models × {len(infos)} benchmarks), {done} of them finished"]
        lines += [
            f"{info.name}: {info.n_items} items × {info.n_draws}, {info.metric}, scored by {info.scoring}"
            for info in infos
        ]
        data = {"cells": len(pairs), "finished": done, "models": self.models}
        return lines, {**data, "benchmarks": [info.to_dict() for info in infos]}

    def _work_of(self, benchmark: Benchmark, model: str) -> dict[str, Any]:
        config = {"benchmark": benchmark.info.name, "model": model, **benchmark.identity(model)}
        remake = True if benchmark.cheap else "refused"
        return {"name": "sweep-cell", "config": config, "models": benchmark.fingerprint(model), "remake": remake}

    def make(self) -> None:
        """Make every cell that is not finished: all responses first, then what judges and reward models say of them."""
        total = sum(len(benchmark.models) for benchmark in self.benchmarks)
        with progress(total, "sweeping", unit="cells") as advance:
            for model in self.models:
                whole = [each for each in self.benchmarks if model in each.models and each.whole]
                found = in_turns(lambda benchmark, model=model: self._visit(benchmark, model), whole)
                for benchmark, done in zip(whole, found, strict=True):
                    _count(advance, benchmark, model, found=done)
                for benchmark in (each for each in self.benchmarks if model in each.models and not each.whole):
                    done = self._visit(benchmark, model, score=not benchmark.deferred)
                    if not benchmark.deferred:
                        _count(advance, benchmark, model, found=done)
                if self.family is not None and model in self.family:
                    self.family[model].release()
            for benchmark in (each for each in self.benchmarks if each.deferred):
                for model in benchmark.models:
                    _count(advance, benchmark, model, found=self._visit(benchmark, model))
                benchmark.release()

    def _visit(self, benchmark: Benchmark, model: str, *, score: bool = True) -> bool:
        """Ask and, if ``score``, finish one cell; a finished one is left as it is. Returns whether it was finished before.

        Where only the scoring changed, the kept responses are scored again.
        """
        folder, work, ranks = self.folder(benchmark, model), self._work_of(benchmark, model), sharing()
        force = self.force and folder not in self._made_again
        self._made_again.add(folder)
        kept = ranks.gather(_kept(folder, work) if ranks.is_first and not force else {})[0]
        if kept:
            work["remake"] = True
        with Stage.open(folder, **work, force=force) as stage:
            found = stage.done
            for name, data in kept.items():
                write_bytes(stage.folder / name, data)
            if kept:
                benchmark.judge_again(model, stage.folder)
            if not stage.done:
                benchmark.ask(model, stage.folder)
                if score:
                    _finish(stage, benchmark.cell(model, stage.folder))
        return found

    def load(self, benchmark: Benchmark, model: str) -> CellResult:
        """A finished cell."""
        return CellResult.load(self.folder(benchmark, model) / CELL_FILE)


def _kept(folder: Path, work: dict[str, Any]) -> dict[str, bytes]:
    """The responses of a cell that was asked as it is asked now, but scored otherwise, by file name; empty for other cells."""
    path = next((folder / name for name in (MANIFEST, UNFINISHED) if (folder / name).is_file()), None)
    found = read_json(path) if path is not None else None
    new = json.loads(dump_json(work["config"]))
    if not isinstance(found, dict) or found.get("stage") != work["name"] or found.get("models") != work["models"]:
        return {}
    old = found.get("config") or {}
    if "asked" not in new or old == new or old.get("asked") != new["asked"] or not (folder / RESPONSES_FILE).is_file():
        return {}
    return {name: (folder / name).read_bytes() for name in _RESPONSES if (folder / name).is_file()}


def _count(advance: Meter, benchmark: Benchmark, model: str, *, found: bool) -> None:
    count = advance.found if found else advance
    count(1, benchmark=benchmark.info.name, model=model)


def _finish(stage: Stage, cell: CellResult) -> None:
    cell.save(stage.folder / CELL_FILE)
    kept = [name for name in (CELL_FILE, *_RESPONSES) if (stage.folder / name).is_file()]
    results = {"value": list(cell.value), "metric": cell.benchmark.metric, "standin": cell.benchmark.standin}
    stage.finish(outputs=kept, counts={"items": len(cell.values)}, results=results)
    for path in stage.folder.iterdir():
        if path.name not in (*kept, MANIFEST):
            path.unlink()


def load_cell(work: Path | str, benchmark: str, model: str) -> CellResult:
    """A finished cell of a sweep with the values of its items; ``work`` is the folder of the cells."""
    return CellResult.load(Path(work) / file_name(benchmark) / model / CELL_FILE)


def outcomes_of(results: SweepResults, work: Path | str) -> Outcomes:
    """The outcomes of every cell that a rule or a judge scored and whose responses are kept; benchmarks are their tasks.

    A response that a judge did not decide is ``unparsed``. These are what `mechprobe evaluate` gives for its tasks, so that whatever
    reads the outcomes of a run can read those of a sweep.

    Args:
        results: The sweep.
        work: Folder of its cells.
    """
    records: list[Outcome] = []
    for name in results.order:
        for model in (model for model in results.models if model in results.files[name]):
            folder = (Path(work) / results.files[name][model]).parent
            if results.benchmarks[name].scorer == "reward_model" or not (folder / RESPONSES_FILE).is_file():
                continue
            kept = read_outcomes(folder / RESPONSES_FILE)
            if results.benchmarks[name].scorer == "judge":
                values = CellResult.load(folder / CELL_FILE).values
                kept = decided(kept, [values[one.sample_id][one.draw] for one in kept])
            records += kept
    return Outcomes(records)
