"""The ``intervene`` stage: run every condition, keep every outcome, and judge the main edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.errors import ConfigError
from mechprobe.evals.stage import check_lengths, tasks_fingerprint, text_identity, text_of
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, sha256_bytes, write_json
from mechprobe.interventions.collateral import CollateralTexts, measure_collateral, texts_of_file
from mechprobe.interventions.conditions.batches import run_conditions
from mechprobe.interventions.conditions.checks import check_belongs
from mechprobe.interventions.conditions.fitting import fitted, fitting_tasks
from mechprobe.interventions.conditions.plan import Condition, choose_sets, plan
from mechprobe.interventions.conditions.readout_choice import check_choice, choose_readout
from mechprobe.interventions.conditions.relative_change import measure_changes, task_prompts
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.readout_rows import ReadoutChoice
from mechprobe.interventions.result import RESULTS_FILE, InterventionResults, json_value
from mechprobe.interventions.result_rows import Collateral
from mechprobe.interventions.rivals.registry import rivals_of
from mechprobe.interventions.verdicts.effects import Measurements
from mechprobe.interventions.verdicts.results import intervention_results, untrained
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress
from mechprobe.records import write_jsonl
from mechprobe.selection.result import Selection
from mechprobe.stage_folder import Stage
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

Inputs = Mapping[str, Path | str]
OUTCOMES_FILE = "outcomes.jsonl"


@dataclass(frozen=True)
class Work:
    """What `intervene` will run, after every check that needs no weights.

    ``others`` holds the sets of other rankings. Collateral is measured on ``texts``; on ``fitting``, rivals are fitted and the
    read-out of transplants is chosen. ``stage`` holds the arguments of `Stage.open` that identify the folder.
    """

    runner: Runner
    conditions: list[Condition]
    others: dict[str, Selection]
    texts: CollateralTexts | None
    fitting: list[Task]
    stage: dict[str, Any]
    choice: ReadoutChoice | None = None

    def under(self, choice: ReadoutChoice) -> "Work":
        """The same work with the read-out of transplants that was chosen: their conditions, and the random sets that match it."""
        runner = self.runner.under(choice.chosen)
        return replace(self, runner=runner, conditions=_planned(runner, self.others), choice=choice)


def prepare(  # noqa: PLR0913 - the arguments of `intervene`
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[Task],
    config: InterveneConfig | None = None,
    *,
    selecting: Sequence[Task] | None = None,
    collateral: CollateralTexts | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Inputs | None = None,
) -> Work:
    """Check the inputs and plan the conditions without loading weights; arguments and errors are those of `intervene`."""
    config = config or InterveneConfig()
    check_belongs(selection, crosscoder, family, config, inputs or {}, tasks)
    tasks = [task.take(config.n_per_task) for task in tasks]
    if config.max_new_tokens is not None:
        tasks = [replace(task, max_new_tokens=config.max_new_tokens) for task in tasks]
    check_lengths(family, tasks, prefix=config.force_prefix)
    untrained([task.name for task in tasks], config)
    if not (config.edits_base or config.edits_tuned):
        raise ConfigError("intervene.edits_base and intervene.edits_tuned are both empty; name at least one edit.")
    texts = _texts(family, collateral, config, text_of(tasks))
    chosen, others = choose_sets(selection, config, table)
    chosen = chosen.under(config.readout_of_transplants, seed=config.seed)
    kinds = config.rivals if selecting is not None else ()
    rivals = rivals_of(kinds, n_features=len(chosen.features), d_model=family.d_model[config.tuned])
    runner = Runner(family, crosscoder, chosen, tasks, config, rivals)
    fitting = fitting_tasks(runner, selecting or ())
    if rivals and not any(task.samples for task in fitting):
        raise ConfigError("The rivals have no sample of a selection half to be fitted on; set intervene.rivals=[].")
    conditions = _planned(runner, others)
    runner.check(conditions)
    check_choice(runner, fitting)
    chooses, scores = config.chooses_readout, chosen.scores
    elsewhere = {"workers", "batch_size", "collateral_file"}
    elsewhere |= set() if chooses else {"transplant_readout"}  # every condition has the read-out it uses
    settings = {
        **config.model_dump(mode="json", exclude=elsewhere),
        "tasks": tasks_fingerprint(tasks),
        **text_identity(family, tasks),
        "collateral": texts.fingerprint if texts else None,
        "fitting": tasks_fingerprint(fitting) if rivals or chooses else None,
        "mean_difference": sha256_bytes(scores.mean_difference.tobytes() + scores.last_difference.tobytes()),
    }
    identity = runner.stage_identity("intervene", conditions, inputs, settings)
    return Work(runner, conditions, others, texts, fitting, identity)


def intervene(  # noqa: PLR0913 - the promised entry point
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[Task],
    out: Path | str = "interventions",
    config: InterveneConfig | None = None,
    *,
    selecting: Sequence[Task] | None = None,
    collateral: CollateralTexts | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Inputs | None = None,
    force: bool = False,
) -> InterventionResults:
    """Run the selected set, its controls, baselines and ceilings on every task, and judge the main edits.

    The tasks must hold samples that did not select; `mechprobe.evals.tasks.split_halves` gives both halves.

    Args:
        family: The crosscoder's models.
        crosscoder: The dictionary.
        selection: The set; ``features``, ``ranking`` and ``threshold`` of the settings choose another from its scores.
        tasks: Evaluation halves.
        out: Stage folder for ``results.json``, ``outcomes.jsonl`` (one code per response and condition) and the manifest.
        config: Settings.
        selecting: Selection halves, on which the rivals are fitted and the read-out of transplants is chosen; without them no rival
            runs, and ``transplant_readout="auto"`` is ``joint``.
        collateral: Unrelated texts on which collateral is measured; None reads ``config.collateral_file``, and measures no
            collateral where that is empty.
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest. The stages ``crosscoder`` and ``selection`` must
            also be of these models, and no judging sample may have selected features.
        force: Make a finished stage again.

    Raises:
        SelectionError: The features cannot be read or do not exist, or one has a zero direction and cannot steer.
        ConfigError: ``positions`` cannot be read, no edit is named, or every task is one that post-training saw.
        InputError: The collateral file cannot be used, or a prompt does not fit the context.
        ModelError: An edit leaves a model without finite numbers, or models of different widths would share features.
        ArtifactError: The parts do not belong together (`check_belongs`), or ``out`` holds other work.
    """
    work = prepare(
        family,
        crosscoder,
        selection,
        tasks,
        config,
        selecting=selecting,
        collateral=collateral,
        table=table,
        inputs=inputs,
    )
    with Stage.open(out, **work.stage, force=force) as stage:
        if not stage.done:
            tokens = SelectionTokens(work.runner, work.fitting)
            if work.runner.config.chooses_readout:
                work = work.under(choose_readout(work.runner, tokens, stage.folder))
            work.runner.fit = fitted(work.runner, work.conditions, tokens, stage.folder)
            codes = _run_all(work.runner, work.conditions, stage.folder)
            results = _judge(work, codes, stage.folder)
            work.runner.models.release()
            write_jsonl(stage.folder / OUTCOMES_FILE, [{"condition": name, **row} for name, row in codes.items()])
            results.save(stage.folder / RESULTS_FILE)
            pooled = [json_value(row) for row in results.pooled_verdicts]
            stage.finish(
                outputs=[OUTCOMES_FILE, RESULTS_FILE],
                counts={"conditions": len(work.conditions), "samples": results.n_per_task},
                results={"verdict": results.verdict, "verdicts": pooled},
                seed=work.runner.config.seed,
            )
            for part in stage.folder.glob("part-*"):
                part.unlink()
    return InterventionResults.load(out)


def _planned(runner: Runner, others: Mapping[str, Selection]) -> list[Condition]:
    """The conditions on the tasks of the runner."""
    names = {task.name for task in runner.tasks}
    planned = plan(runner.selection, others, runner.config, list(runner.rivals.values()))
    return [condition for condition in planned if names.issuperset(condition.tasks)]


def _texts(
    family: ModelFamily, given: CollateralTexts | None, config: InterveneConfig, text: TextConfig
) -> CollateralTexts | None:
    if config.collateral_texts == 0:
        return None
    if config.collateral_file:
        encoder = PromptEncoder.of(family.tokenizers, text)
        given = texts_of_file(config.collateral_file, encoder, config.collateral_texts)
    length = min(config.collateral_length, family.max_context)
    return given.limited(config.collateral_texts, length) if given else None


def _judge(work: Work, codes: Mapping[str, Mapping[str, str]], folder: Path) -> InterventionResults:
    """Measure collateral and relative changes, and judge the outcomes; the collateral is kept until the stage is finished."""
    runner, texts, part = work.runner, work.texts, folder / "part-collateral.json"
    if texts and not part.is_file():
        found = measure_collateral(runner, work.conditions, texts, seed=runner.config.seed)
        write_json(part, {name: row.to_dict() for name, row in found.items()})
    stored = read_json(part) if texts else {}
    collateral_of = {name: Collateral.model_validate(row) for name, row in stored.items()}
    with activity("relative changes of the residuals"):
        changes, change_of = measure_changes(runner, work.conditions, task_prompts(runner))
    doses = runner.fit.doses if runner.fit else {}
    summary = texts.summary if texts else None
    measured = Measurements(changes, change_of, summary, collateral_of, doses, work.choice)
    with activity("intervals and verdicts"):
        return intervention_results(runner.selection, work.conditions, codes, runner.tasks, runner.config, measured)


def _run_all(runner: Runner, conditions: Sequence[Condition], folder: Path) -> dict[str, dict[str, str]]:
    """Outcome codes of every condition; each is written when its batch finishes, so that an interrupted stage resumes."""
    parts = {condition.name: folder / f"part-{index:04d}.json" for index, condition in enumerate(conditions)}
    done = {name for name, part in parts.items() if part.is_file()}
    with progress(len(conditions), "intervening", unit="conditions") as advance:
        advance.found(len(done))
        for condition, codes in run_conditions(runner, conditions, workers=runner.config.workers, done=done):
            if condition.name in done:  # its batch was interrupted
                continue
            write_json(parts[condition.name], codes)
            right = "".join(codes.values())
            advance(1, condition=condition.name, right=f"{100 * right.count('R') / max(1, len(right)):.0f} %")
    return {name: read_json(part) for name, part in parts.items()}
