"""``mechprobe sweep``: every model on every benchmark, a cell each, and the table over them.

Models answer first, one after the other, and each is freed before the next. Judges and reward models score after that, so that
no scorer is in memory beside a model. A cell is a stage folder of its own: finished ones are never made again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.config import read_toml
from mechprobe.data.config import TextConfig
from mechprobe.emergence.arms import all_arms, step_of
from mechprobe.errors import ConfigError
from mechprobe.evals.judging.judge import FunctionJudge, Judge
from mechprobe.files import write_text
from mechprobe.models.family import ModelFamily
from mechprobe.ranks import sharing
from mechprobe.stage_folder import Stage
from mechprobe.sweep.asymmetry import safety_paths
from mechprobe.sweep.benchmarks import Benchmark, item_benchmark
from mechprobe.sweep.cells import Cells
from mechprobe.sweep.config import BenchmarkConfig, SweepConfig, anchored
from mechprobe.sweep.items import Asked, task_of
from mechprobe.sweep.numbers import compare
from mechprobe.sweep.registry import STANDINS
from mechprobe.sweep.result import CELL_FILE, RESULT_FILE, TABLE_FILE, CellResult, SweepResults
from mechprobe.sweep.table import markdown_table
from mechprobe.types import THINK, ThinkTags

Benchmarks = Mapping[str, Any] | Sequence[str] | Path | str
JudgeFunction = Callable[[str, str], Any]


def sweep(  # noqa: PLR0913 - the promised entry point; all but two are keyword options
    family: ModelFamily | None,
    benchmarks: Benchmarks | None = None,
    *,
    out: Path | str = "sweep",
    work: Path | str | None = None,
    config: SweepConfig | None = None,
    judges: Mapping[str, JudgeFunction] | None = None,
    text: TextConfig | None = None,
    think: ThinkTags | None = THINK,
    force: bool = False,
) -> SweepResults:
    """Evaluate every model on every benchmark. A killed sweep goes on where it was, and keeps every finished cell.

    Args:
        family: Base and the checkpoints, named ``rl@step_000040``; None where all results are finished.
        benchmarks: Name → settings, or names of stand-ins, or a TOML file with ``[benchmarks.<name>]``; those of ``config`` if None.
        out: Stage folder for ``sweep.json``, ``table.md`` and the manifest.
        work: Folder of the cells, ``<benchmark>/<model>/``; ``benchmarks`` beside ``out`` if None.
        config: Settings; the defaults if None.
        judges: Benchmark → Python function of prompt and response, which judges it.
        text: How prompts become token ids.
        think: Tags around the thinking of models.
        force: Make every cell again.

    Returns:
        The table; the values of single items are in the cells (`mechprobe.sweep.cells.load_cell`).

    Raises:
        ConfigError: A benchmark has no data or no scorer, or base is missing.
        InputError: Items, rollouts or finished results are unusable.
        ArtifactError: A folder holds other work.
    """
    config = config or SweepConfig()
    if benchmarks is not None:
        config = config.replace(benchmarks=read_benchmarks(benchmarks))
    work = Path(out).parent / "benchmarks" if work is None else Path(work)
    found = prepare(family, config, judges=judges, text=text, think=think)
    cells = Cells(work, found, family, force=force)
    cells.check()
    sharing().wait()  # until all processes have checked the cells, which the first one may begin again
    cells.make()
    return _collect(cells, config, Path(out), force=force)


def read_benchmarks(source: Benchmarks) -> dict[str, BenchmarkConfig]:
    """Benchmarks by name, from settings, from names of stand-ins, or from a TOML file, whose paths are relative to it.

    Raises:
        ConfigError: The file or a setting cannot be used.
    """
    if isinstance(source, Mapping):
        values: Mapping[str, Any] = source
    elif isinstance(source, str | Path) and Path(source).suffix == ".toml":
        data = read_toml(source)
        unknown = [key for key in data if key != "benchmarks"]
        if unknown or not isinstance(data.get("benchmarks"), dict):
            raise ConfigError(
                f"{source} must hold tables [benchmarks.<name>] only{f', not {unknown[0]}' if unknown else ''}."
            )
        values = {name: anchored(value, Path(source).parent) for name, value in data["benchmarks"].items()}
    else:
        values = {name: {} for name in ([str(source)] if isinstance(source, str | Path) else source)}
    return dict(SweepConfig(benchmarks=dict(values)).benchmarks)  # pyright: ignore[reportArgumentType]


def chosen_benchmarks(config: SweepConfig) -> dict[str, BenchmarkConfig]:
    """The benchmarks of the settings. If there are none, the stand-ins that need no reward model and no policy."""
    rules = (name for name, slot in STANDINS.items() if slot.kind != "reward_model" and slot.group != "safety")
    return dict(config.benchmarks) or {name: BenchmarkConfig() for name in rules}


def prepare(
    family: ModelFamily | None,
    config: SweepConfig,
    *,
    judges: Mapping[str, JudgeFunction] | None = None,
    text: TextConfig | None = None,
    think: ThinkTags | None = THINK,
) -> list[Benchmark]:
    """Check every benchmark before any model runs; arguments and errors are those of `sweep`."""
    chosen, judges = chosen_benchmarks(config), dict(judges or {})
    unknown = next((name for name in judges if name not in chosen), None)
    if unknown is not None:
        raise ConfigError(
            f"A judge is given for '{unknown}', which is no benchmark of this sweep ({', '.join(chosen)})."
        )
    found: list[Benchmark] = []
    for name, settings in chosen.items():
        if settings.results:
            from mechprobe.sweep.lm_eval import finished_benchmark

            found.append(finished_benchmark(name, settings, config))
            continue
        if family is None:
            raise ConfigError(
                f"Benchmark {name} is to be answered, but no models are given; write --models base=PATH rl=PATH."
            )
        if settings.harness:
            from mechprobe.sweep.lm_eval import harness_benchmark

            found.append(harness_benchmark(name, settings, config, family, think[1] if think else ""))
            continue
        judge: Judge | None = FunctionJudge.of(judges[name], settings.judge) if name in judges else None
        if judge is not None:
            settings = settings.replace(judge=judge.config, scorer="")
        asked = Asked(family.tokenizers, text or TextConfig(), think)
        found.append(item_benchmark(name, settings, config, family, task_of(name, settings, config, asked), judge))
    names = [model for benchmark in found for model in benchmark.models]
    if config.base not in names:
        raise ConfigError(
            f"sweep.base is '{config.base}', but the models are {', '.join(dict.fromkeys(names))}; name one of them."
        )
    return found


def _collect(cells: Cells, config: SweepConfig, out: Path, *, force: bool) -> SweepResults:
    """Write the table over all cells; it is made again whenever a cell is new."""
    inputs = {
        f"{benchmark.info.name} {model}": cells.folder(benchmark, model)
        for benchmark in cells.benchmarks
        for model in benchmark.models
    }
    settings = {"base": config.base, "seed": config.seed, "models": cells.models, "final_steps": config.final_steps}
    with Stage.open(
        out, name="sweep", config=settings, inputs=inputs, force=force, remake=True, one_folder=True
    ) as stage:
        if not stage.done and sharing().is_first:
            results = _results(cells, config)
            results.save(stage.folder / RESULT_FILE)
            write_text(stage.folder / TABLE_FILE, markdown_table(results))
            stage.finish(outputs=[RESULT_FILE, TABLE_FILE], counts={"cells": len(inputs)}, seed=config.seed)
    return SweepResults.load(out)


def _results(cells: Cells, config: SweepConfig) -> SweepResults:
    found = {
        benchmark.info.name: {model: cells.load(benchmark, model) for model in benchmark.models}
        for benchmark in cells.benchmarks
    }
    comparisons = {
        name: {
            model: compare(row[config.base], cell, seed=config.seed)
            for model, cell in row.items()
            if model != config.base and config.base in row
        }
        for name, row in found.items()
    }
    models = cells.models
    arms = {arm.name: list(arm.checkpoints) for arm in all_arms(models, config.base, config.final_steps)}
    steps = {m: 0 if m == config.base else step_of(m, config.final_steps) for m in models}
    return SweepResults(
        base=config.base,
        arms=arms,
        order=list(found),
        steps=steps,
        benchmarks={name: next(iter(row.values())).benchmark for name, row in found.items()},
        cells={
            name: {m: cell.model_copy(update={"values": {}}) for m, cell in row.items()} for name, row in found.items()
        },
        comparisons=comparisons,
        files={
            each.info.name: {
                m: (cells.folder(each, m) / CELL_FILE).relative_to(cells.work).as_posix() for m in each.models
            }
            for each in cells.benchmarks
        },
        safety=safety_paths(found, config.base, seed=config.seed, arms=arms, steps=steps),
        notes=_notes(found),
    )


def _notes(found: Mapping[str, Mapping[str, CellResult]]) -> list[str]:
    """What a reader should know of the numbers."""
    infos = [next(iter(row.values())).benchmark for row in found.values()]
    notes = []
    standins = [info.name for info in infos if info.standin]
    if standins:
        notes.append(
            f"{', '.join(standins)}: procedural stand-ins from the skills benchmark. They say nothing about the benchmarks that "
            "they are named after."
        )
    undecided = {name: sum(cell.undecided for cell in row.values()) for name, row in found.items()}
    for name in (name for name, count in undecided.items() if count):
        notes.append(
            f"{name}: {undecided[name]} responses are undecided and in no mean; bounds show what they could change."
        )
    if any(info.scorer == "reward_model" for info in infos):
        notes.append("Raw logits of different reward models cannot be compared; the win rate against base can.")
    truncated = {name: max(cell.truncated for cell in row.values()) for name, row in found.items()}
    notes += [f"{name}: lm-eval drops the beginning of {count} prompts." for name, count in truncated.items() if count]
    return notes
