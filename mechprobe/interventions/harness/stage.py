"""The ``harness`` stage: tasks of lm-evaluation-harness under the edits of a selection, on the harness' own metrics.

Every model is measured clean; the base and the tuned model are also measured under the main edits of `mechprobe intervene`.
Changes are against the clean run of the same model on the same documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.harness import HarnessTasks
from mechprobe.evals.result import HarnessRun
from mechprobe.evals.stage import tasks_fingerprint
from mechprobe.evals.tasks import Task
from mechprobe.files import write_json, write_text
from mechprobe.interventions.conditions.checks import check_belongs
from mechprobe.interventions.conditions.fitting import fitting_tasks
from mechprobe.interventions.conditions.plan import Condition, choose_sets, condition_row, plan
from mechprobe.interventions.conditions.readout_choice import check_choice, choose_readout
from mechprobe.interventions.conditions.relative_change import measure_changes
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.harness.result import HarnessCondition, HarnessResults, MetricCell, markdown_table
from mechprobe.interventions.readout_rows import ReadoutChoice
from mechprobe.interventions.result import RESULTS_FILE
from mechprobe.interventions.result_rows import ChangeSize
from mechprobe.interventions.verdicts.results import edited_set
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress
from mechprobe.ranks import in_turns
from mechprobe.selection.result import Selection
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval, paired_bootstrap, paired_difference, randomization_p
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd


Found = Mapping[str, HarnessRun]
"""Condition → what `mechprobe.evals.harness.HarnessTasks.run` returns."""
Metrics = dict[str, dict[str, MetricCell]]

VALUES_FILE = "values.json"
TABLE_FILE = "table.md"
_USED = {
    "base", "tuned", "features", "ranking", "threshold", "edits_base", "edits_tuned", "readout", "near", "positions", "seed",
}  # fmt: skip
"""Settings of the interventions that the stage uses."""
NOTE = "These are lm-eval's own numbers. Whether features cause a change is judged by `mechprobe intervene` with its controls."


@dataclass(frozen=True)
class HarnessWork:
    """What `evaluate_harness` will run, after every check that needs no weights.

    ``truncated`` holds the number of documents of each task that do not fit the context. On ``fitting`` the read-out of transplants
    is chosen. ``stage`` holds the arguments of `Stage.open` that identify the folder.
    """

    runner: Runner
    tasks: HarnessTasks
    conditions: list[Condition]
    truncated: dict[str, int]
    fitting: list[Task]
    stage: dict[str, Any]
    choice: ReadoutChoice | None = None

    def under(self, choice: ReadoutChoice) -> "HarnessWork":
        """The same work with the read-out of transplants that was chosen."""
        runner = self.runner.under(choice.chosen)
        return replace(self, runner=runner, conditions=_planned(runner), choice=choice)


def prepare_harness(  # noqa: PLR0913 - the arguments of `evaluate_harness`
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[str | Path],
    config: InterveneConfig | None = None,
    *,
    harness: HarnessConfig | None = None,
    selecting: Sequence[Task] | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
) -> HarnessWork:
    """Check the inputs and plan the conditions without loading weights; arguments and errors are those of `evaluate_harness`."""
    settings, config = harness or HarnessConfig(), config or InterveneConfig()
    check_belongs(selection, crosscoder, family, config, inputs or {})
    if settings.chat_template and not family.tokenizer.chat_template:
        raise ConfigError("--chat-template: the models' tokenizer has no chat template; omit the option.")
    asked = HarnessTasks(tasks, settings)
    planned = config.replace(n_random=settings.n_random, n_shuffled=1, compare=())
    chosen, _ = choose_sets(selection, planned, table)
    chosen = chosen.under(config.readout_of_transplants, seed=config.seed)
    runner = Runner(family, crosscoder, chosen, [], planned)
    conditions, fitting = _planned(runner), fitting_tasks(runner, selecting or ())
    runner.check(conditions)
    check_choice(runner, fitting)
    require_boundary(config.positions, asked.likelihood_names)
    used = {**config.model_dump(mode="json", include=_USED), **settings.model_dump(mode="json")}
    used |= {"lm_eval": asked.version, "tasks": asked.fingerprint}
    if config.chooses_readout:
        used |= {"transplant_readout": config.transplant_readout, "fitting": tasks_fingerprint(fitting)}
    truncated = asked.truncated(runner.family)
    identity = runner.stage_identity("harness", conditions, inputs, used)
    return HarnessWork(runner, asked, conditions, truncated, fitting, identity)


def _planned(runner: Runner) -> list[Condition]:
    """Every model clean, and the main edits with their matched random sets."""
    names = runner.crosscoder.model_names
    clean = [Condition(f"{name}|clean", name, "clean", "none", "clean", "clean") for name in names]
    return clean + [c for c in plan(runner.selection, {}, runner.config) if c.set_kind in ("selected", "random")]


def evaluate_harness(  # noqa: PLR0913 - an entry point like `intervene`
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[str | Path],
    out: Path | str = "harness",
    config: InterveneConfig | None = None,
    *,
    harness: HarnessConfig | None = None,
    selecting: Sequence[Task] | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> HarnessResults:
    """Run tasks of lm-evaluation-harness on every clean model, and on base and tuned under the edits of the selection.

    The arguments are those of `mechprobe.interventions.stage.intervene`, except that ``tasks`` are YAML files or names that
    lm-eval knows and ``harness`` holds its settings. The stage folder ``out`` gets ``results.json``, ``values.json`` (one number per
    document), ``table.md`` and the manifest.

    Raises:
        DependencyError: lm-eval is not installed.
        InputError: A task cannot be used.
        ConfigError: lm-eval has no such task, or its requests do not show the positions that the edits need.
        ArtifactError: The parts do not belong together (`check_belongs`), or ``out`` holds other work.
    """
    given = {"harness": harness, "selecting": selecting, "table": table, "inputs": inputs}
    work = prepare_harness(family, crosscoder, selection, tasks, config, **given)
    with Stage.open(out, **work.stage, force=force) as stage:
        if not stage.done:
            if work.runner.config.chooses_readout:
                tokens = SelectionTokens(work.runner, work.fitting)
                work = work.under(choose_readout(work.runner, tokens, stage.folder))
            found = _run_all(work, stage.folder)
            results = _results(work, found)
            results.save(stage.folder / RESULTS_FILE)
            write_json(stage.folder / VALUES_FILE, {name: run.values for name, run in found.items()})
            write_text(stage.folder / TABLE_FILE, markdown_table(results))
            stage.finish(
                outputs=[RESULTS_FILE, VALUES_FILE, TABLE_FILE],
                counts={"conditions": len(work.conditions), "documents": results.n},
                results={"tasks": work.tasks.names},
                seed=work.runner.config.seed,
            )
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return HarnessResults.load(out)


def require_boundary(positions: str, likelihood_names: Sequence[str]) -> None:
    """Raise `ConfigError` where ``positions`` distinguish prompt from response, but some tasks ask for log-likelihoods."""
    if likelihood_names and ("prompt" in positions or "response" in positions):
        raise ConfigError(
            f"lm-eval passes prompt and option of {', '.join(likelihood_names)} in one call, so an edit cannot tell prompt from "
            f"response; set intervene.positions to 'all' instead of '{positions}'."
        )


def _run_all(work: HarnessWork, folder: Path) -> Found:
    """The harness' results of every condition; each is written when it finishes, so that an interrupted stage resumes."""
    parts = {condition.name: folder / f"part-{index:04d}.json" for index, condition in enumerate(work.conditions)}
    waiting = [condition for condition in work.conditions if not parts[condition.name].is_file()]

    def run(condition: Condition) -> HarnessRun:
        with work.runner.in_force(condition), activity(condition.name):
            return work.tasks.run(work.runner.family[condition.model])

    with progress(len(work.conditions), "lm-eval", unit="conditions") as advance:
        advance.found(len(work.conditions) - len(waiting))
        for condition, found in zip(waiting, in_turns(run, waiting), strict=True):
            found.save(parts[condition.name])
            advance(1, condition=condition.name)
    return {name: HarnessRun.load(part) for name, part in parts.items()}


def _results(work: HarnessWork, found: Found) -> HarnessResults:
    runner, first = work.runner, found[work.conditions[0].name]
    encoder = PromptEncoder.of(runner.family.tokenizers)  # the harness has rendered its prompts
    prompts = [encoder.encode(Prompt("harness", text)) for text in work.tasks.prompts]
    changes, change_of = measure_changes(runner, work.conditions, prompts)
    return HarnessResults(
        **edited_set(runner.selection, runner.config, work.choice).given(),
        note=NOTE,
        lm_eval=work.tasks.version,
        tasks=sorted(first.metrics),
        n=first.n,
        truncated=work.truncated,
        higher_is_better=first.higher_is_better,
        conditions=_conditions(work.conditions, found, change_of, runner.config),
        changes=changes,
    )


def _conditions(
    conditions: Sequence[Condition], found: Found, change_of: Mapping[str, ChangeSize], config: InterveneConfig
) -> list[HarnessCondition]:
    """One record per condition, in order. The clean condition of a model is named ``<model>|clean``."""
    metrics = {c.name: _against_clean(c, found, config.seed) for c in conditions}
    higher = found[conditions[0].name].higher_is_better
    for main in (c for c in conditions if c.set_kind == "selected"):
        control = ("random", main.model, main.edit)
        draws = [metrics[c.name] for c in conditions if (c.set_kind, c.model, c.edit) == control]
        metrics[main.name] = _against_random(metrics[main.name], draws, higher, gain=main.model == config.base)
    return [HarnessCondition(**dict(condition_row(c, config, change_of)), metrics=metrics[c.name]) for c in conditions]


def _against_clean(condition: Condition, found: Found, seed: int) -> Metrics:
    mine, host = found[condition.name], found[f"{condition.model}|clean"]
    result: Metrics = {}
    for task, cells in mine.metrics.items():
        result[task] = {}
        for key, cell in cells.items():
            change = None if condition.how == "clean" else _change(mine, host, task, key, seed)
            result[task][key] = MetricCell(value=cell.value, stderr=cell.stderr, n=mine.n.get(task), change=change)
    return result


def _change(mine: HarnessRun, host: HarnessRun, task: str, key: str, seed: int) -> Interval | None:
    """Change of one metric, with a paired interval where it is a mean over documents: Tango's if right or wrong, else bootstrap."""
    value, start = (side.metrics[task][key].value for side in (mine, host))
    if value is None or start is None:
        return None
    after, before = (side.values.get(task, {}).get(key) for side in (mine, host))
    if after and before and _is_mean(after, value) and _is_mean(before, start):
        if {*before, *after} <= {0, 1}:
            return paired_difference(np.array(before, dtype=bool), np.array(after, dtype=bool))
        return paired_bootstrap(before, after, seed=seed)
    nan = float("nan")  # a group has no documents
    return Interval(value - start, nan, nan, mine.n.get(task, 0))


def _is_mean(values: Sequence[float], aggregated: float) -> bool:
    """Whether the harness averaged a metric over documents; only then is a paired difference defined."""
    return abs(sum(values) / len(values) - aggregated) <= 1e-9 * max(1.0, abs(aggregated))


def _against_random(
    metrics: Metrics, draws: Sequence[Metrics], higher: Mapping[str, Mapping[str, bool | None]], *, gain: bool
) -> Metrics:
    """The metrics of a selected set beside the changes of its random sets; ``gain`` says whether a gain is claimed."""
    result = {task: dict(cells) for task, cells in metrics.items()}
    for task, cells in metrics.items():
        for key, cell in cells.items():
            known = [change.value for draw in draws if (change := draw[task][key].change) is not None]
            if cell.change is None or not known:
                continue
            update: dict[str, Any] = {"random_mean": sum(known) / len(known), "n_random": len(known)}
            better = higher.get(task, {}).get(key.partition(",")[0])
            if better is not None:
                side = "greater" if gain == better else "less"
                update["p_random"] = randomization_p(cell.change.value, known, side=side)
            result[task][key] = cell.model_copy(update=update)
    return result
