"""The ``intervene`` stage: run every condition, keep every outcome, and give the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ConfigError
from mechprobe.evals.stage import check_lengths, tasks_fingerprint
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, sha256_bytes, write_json
from mechprobe.interventions.collateral import CollateralTexts, measure_collateral, texts_of_file, with_collateral
from mechprobe.interventions.conditions.changes import with_changes
from mechprobe.interventions.conditions.checks import check_belongs
from mechprobe.interventions.conditions.conditions import Condition, fingerprint, plan, row_named
from mechprobe.interventions.conditions.runner import Runner, run_conditions
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.verdicts.assemble import assemble, untrained
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.records import write_jsonl
from mechprobe.selection.stage import Selection
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.types import POOLED
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

RESULTS_FILE = "results.json"
OUTCOMES_FILE = "outcomes.jsonl"


@dataclass(frozen=True)
class InterventionResults:
    """Effects of every condition and the verdicts.

    Attributes:
        conditions: One row per condition, see `mechprobe.interventions.verdicts.effects.condition_results`.
        verdicts: One row per main edit and task (``pooled`` is over the held-out tasks).
        verdict: One sentence.
        rule: How verdicts are reached.
        data: Everything in ``results.json``.
    """

    conditions: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    verdict: str
    rule: str
    data: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> "InterventionResults":
        """Read a finished ``intervene`` stage."""
        read_manifest(folder)
        data = read_json(Path(folder) / RESULTS_FILE)
        return cls(data["conditions"], data["verdicts"], data["verdict"], data["rule"], data)

    def condition(self, name: str) -> dict[str, Any]:
        """One row by name, for example ``rl|ablate|top50``."""
        return row_named(self.conditions, name)


@dataclass(frozen=True)
class Work:
    """What `intervene` is to run, with everything checked that can be before a model is loaded.

    Attributes:
        runner: Runs conditions.
        conditions: What is run.
        texts: What collateral is measured on, or None.
        stage: What the stage folder is known by: ``name``, ``config``, ``inputs``, ``models`` and ``remake`` of `Stage.open`.
    """

    runner: Runner
    conditions: list[Condition]
    texts: CollateralTexts | None
    stage: dict[str, Any]


def prepare(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[Task],
    config: InterveneConfig | None = None,
    *,
    collateral: CollateralTexts | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
) -> Work:
    """Everything of `intervene` that needs no weights; arguments and errors as there."""
    config = config or InterveneConfig()
    check_belongs(selection, crosscoder, family, config, inputs or {}, tasks)
    tasks = [_limited(task.take(config.n_per_task), config.max_new_tokens) for task in tasks]
    check_lengths(family, tasks, prefix=config.force_prefix)
    untrained([task.name for task in tasks], config)
    if not (config.edits_base or config.edits_tuned):
        raise ConfigError("intervene.edits_base and edits_tuned are both empty; name an edit to judge.")
    texts = _texts(family, collateral, config)
    chosen, others = choose_sets(selection, config, table)
    runner = Runner(family, crosscoder, chosen, tasks, config)
    names = {task.name for task in tasks}
    conditions = [condition for condition in plan(chosen, others, config) if names.issuperset(condition.tasks)]
    runner.check(conditions)
    elsewhere = {"workers", "collateral_file", "transplant_readout"}  # the last is in every condition that it changes
    settings = config.model_dump(mode="json", exclude=elsewhere)
    identity = {
        **settings,
        "tasks": tasks_fingerprint(tasks),
        "collateral": texts.fingerprint if texts else None,
        "crosscoder": crosscoder.fingerprint,
        "site": chosen.site,
        "sets": fingerprint(conditions),
        "mean_difference": sha256_bytes(
            chosen.scores.mean_difference.tobytes() + chosen.scores.last_difference.tobytes()
        ),
        **runner.family.reduced_dtypes,
    }
    known_by = {"name": "intervene", "config": identity, "inputs": inputs, "models": runner.family.fingerprints}
    return Work(runner, conditions, texts, {**known_by, "remake": "refused"})


def intervene(  # noqa: PLR0913 - the promised entry point
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[Task],
    out: Path | str = "interventions",
    config: InterveneConfig | None = None,
    *,
    collateral: CollateralTexts | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> InterventionResults:
    """Run the selected set, its controls, baselines and ceilings on every task, and judge.

    The tasks must hold samples that did not select (`mechprobe.evals.tasks.split_halves` gives both halves).

    Args:
        family: The crosscoder's models.
        crosscoder: The dictionary.
        selection: The set; ``config.features``, ``ranking`` and ``threshold`` choose another from its scores.
        tasks: Evaluation halves.
        out: Stage folder: ``results.json``, ``outcomes.jsonl`` (one letter a sample and condition), the manifest.
        config: Settings.
        collateral: Unrelated texts on which collateral is measured; None reads ``config.collateral_file``, and measures none
            where that is empty.
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest; ``crosscoder`` and ``selection`` are also held to
            be of these models, and no sample may have selected what it judges.
        force: Make a finished stage again.

    Raises:
        SelectionError: The features cannot be read or do not exist, or one has no direction to steer along.
        ConfigError: ``positions`` names none, no edit is named, or every task is one that post-training saw.
        InputError: The collateral file cannot be used, or a prompt does not fit the context.
        ModelError: An edit leaves a model without numbers, or models of two widths are to share features.
        ArtifactError: The parts do not belong together (`check_belongs`), or ``out`` holds other work.
    """
    work = prepare(family, crosscoder, selection, tasks, config, collateral=collateral, table=table, inputs=inputs)
    runner, conditions, texts = work.runner, work.conditions, work.texts
    with Stage.open(out, **work.stage, force=force) as stage:
        if not stage.done:
            letters = _run_all(runner, conditions, stage.folder)
            found = _collateral(runner, conditions, texts, stage.folder)
            data = assemble(runner.selection, conditions, letters, runner.tasks, runner.config)
            data["collateral"] = with_collateral(data["conditions"], found, texts)
            data["changes"] = with_changes(data["conditions"], runner, conditions)
            write_jsonl(stage.folder / OUTCOMES_FILE, [{"condition": n, **row} for n, row in letters.items()])
            write_json(stage.folder / RESULTS_FILE, data)
            pooled = [row for row in data["verdicts"] if row["task"] == POOLED]
            stage.finish(
                outputs=[OUTCOMES_FILE, RESULTS_FILE],
                counts={"conditions": len(conditions), "samples": data["n_per_task"]},
                results={"verdict": data["verdict"], "verdicts": pooled},
                seed=runner.config.seed,
            )
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return InterventionResults.load(out)


def _limited(task: Task, max_new_tokens: int | None) -> Task:
    return task if max_new_tokens is None else replace(task, max_new_tokens=max_new_tokens)


def _texts(family: ModelFamily, given: CollateralTexts | None, config: InterveneConfig) -> CollateralTexts | None:
    """The texts in use, as many and as long as the settings say; those of ``collateral_file`` where it is set."""
    if config.collateral_texts == 0:
        return None
    if config.collateral_file:
        given = texts_of_file(config.collateral_file, family.tokenizer, config.collateral_texts)
    length = min(config.collateral_length, family.max_context)
    return given.limited(config.collateral_texts, length) if given else None


def choose_sets(
    selection: Selection, config: InterveneConfig, table: "pd.DataFrame | None"
) -> tuple[Selection, dict[str, Selection]]:
    """The set under test with its random sets, and the sets of the other rankings by name."""
    options: dict[str, Any] = {"threshold": config.threshold, "seed": config.seed, "table": table}
    rule = config.features or selection.rule
    chosen = selection.choose(rule, ranking=config.ranking, n_controls=config.n_random, **options)
    by_ranking = rule.startswith(("top", "agnostic"))
    others = {
        f"{rule} by {ranking}": selection.choose(rule, ranking=ranking, n_controls=0, **options)
        for ranking in config.compare
        if by_ranking and ranking != chosen.ranking
    }
    return chosen, others


def _collateral(
    runner: Runner, conditions: Sequence[Condition], texts: CollateralTexts | None, folder: Path
) -> dict[str, Any] | None:
    """Collateral by condition, kept in a file as `_run_all` keeps outcomes; None without texts."""
    part = folder / "part-collateral.json"
    if texts is None:
        return None
    if not part.is_file():
        write_json(part, measure_collateral(runner, conditions, texts, seed=runner.config.seed))
    return read_json(part)


def _run_all(runner: Runner, conditions: Sequence[Condition], folder: Path) -> dict[str, dict[str, str]]:
    """Every condition's outcomes; each is kept in a file as it ends, so that an interrupted stage goes on."""
    parts = {condition.name: folder / f"part-{index:04d}.json" for index, condition in enumerate(conditions)}
    missing = [condition for condition in conditions if not parts[condition.name].is_file()]
    with progress(len(conditions), "intervening", unit="conditions") as advance:
        advance(len(conditions) - len(missing))
        for condition, letters in run_conditions(runner, missing, workers=runner.config.workers):
            write_json(parts[condition.name], letters)
            right = "".join(letters.values())
            advance(1, condition=condition.name, right=f"{100 * right.count('R') / max(1, len(right)):.0f} %")
    return {name: read_json(part) for name, part in parts.items()}
