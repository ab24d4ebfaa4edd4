"""The ``intervene`` stage: run every condition, keep every outcome, and give the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.artifacts import Stage, dump_json, read_json, read_manifest, sha256_bytes, write_json
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.evals.outcomes import check_lengths, tasks_fingerprint
from mechprobe.evals.tasks import Task
from mechprobe.features.generalization import Selection
from mechprobe.features.readout import Readout
from mechprobe.interventions.conditions import Condition, plan
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.effects import POOLED, Right, condition_results
from mechprobe.interventions.runner import Runner, run_conditions
from mechprobe.interventions.verdict import headline, rule_text, verdicts
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.records import write_jsonl
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

RESULTS_FILE = "results.json"
OUTCOMES_FILE = "outcomes.jsonl"


@dataclass(frozen=True)
class InterventionResults:
    """Effects of every condition and the verdicts.

    Attributes:
        conditions: One row per condition, see `mechprobe.interventions.effects.condition_results`.
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
        for row in self.conditions:
            if row["name"] == name:
                return row
        raise ConfigError(f"There is no condition '{name}'; there are {', '.join(r['name'] for r in self.conditions)}.")


def intervene(  # noqa: PLR0913 - the promised entry point
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[Task],
    out: Path | str = "interventions",
    config: InterveneConfig | None = None,
    *,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> InterventionResults:
    """Run the selected set, its controls, baselines and ceilings on every task, and judge.

    The tasks must hold samples that did not select (`mechprobe.evals.tasks.split_halves` gives both halves).

    Args:
        family: The crosscoder's models.
        crosscoder: The dictionary.
        selection: Scores and default set; ``config.features`` and ``config.ranking`` choose from its scores.
        tasks: Evaluation halves.
        out: Stage folder: ``results.json``, ``outcomes.jsonl`` (one letter a sample and condition), the manifest.
        config: Settings.
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest.
        force: Make a finished stage again.

    Raises:
        SelectionError: The features cannot be read or do not exist.
        ArtifactError: The selection was made with another crosscoder, or ``out`` holds other work.
    """
    config = config or InterveneConfig()
    if selection.crosscoder != crosscoder.fingerprint:
        raise ArtifactError(
            f"The selection was made with crosscoder {selection.crosscoder[:12]}, this one is "
            f"{crosscoder.fingerprint[:12]}; run `mechprobe select` again."
        )
    tasks = [_limited(task.take(config.n_per_task), config.max_new_tokens) for task in tasks]
    check_lengths(family, tasks, prefix=config.force_prefix)
    chosen, others = choose_sets(selection, config, table)
    conditions = plan(chosen, others, config)
    untrained([task.name for task in tasks], config)
    settings = config.model_dump(mode="json", exclude={"workers"})
    identity = {
        **settings,
        "tasks": tasks_fingerprint(tasks),
        "crosscoder": crosscoder.fingerprint,
        "site": chosen.site,
        "sets": sha256_bytes(dump_json([asdict(condition) for condition in conditions]).encode()),
        "mean_difference": sha256_bytes(
            chosen.scores.mean_difference.tobytes() + chosen.scores.last_difference.tobytes()
        ),
    }
    models = family.subset(*crosscoder.model_names).fingerprints
    with Stage.open(out, name="intervene", config=identity, inputs=inputs, models=models, force=force) as stage:
        if not stage.done:
            runner = Runner(family, crosscoder, chosen, tasks, config)
            letters = _run_all(runner, conditions, stage.folder)
            data = assemble(chosen, conditions, letters, tasks, config)
            write_jsonl(stage.folder / OUTCOMES_FILE, [{"condition": n, **row} for n, row in letters.items()])
            write_json(stage.folder / RESULTS_FILE, data)
            pooled = [row for row in data["verdicts"] if row["task"] == POOLED]
            stage.finish(
                outputs=[OUTCOMES_FILE, RESULTS_FILE],
                counts={"conditions": len(conditions), "samples": data["n_per_task"]},
                results={"verdict": data["verdict"], "verdicts": pooled},
                seed=config.seed,
            )
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return InterventionResults.load(out)


def _limited(task: Task, max_new_tokens: int | None) -> Task:
    return task if max_new_tokens is None else replace(task, max_new_tokens=max_new_tokens)


def choose_sets(
    selection: Selection, config: InterveneConfig, table: "pd.DataFrame | None"
) -> tuple[Selection, dict[str, Selection]]:
    """The set under test with its random sets, and the sets of the other rankings by name."""
    options: dict[str, Any] = {"threshold": config.threshold, "seed": config.seed, "table": table}
    chosen = selection.choose(config.features, ranking=config.ranking, n_controls=config.n_random, **options)
    by_ranking = config.features.startswith(("top", "agnostic"))
    others = {
        f"{config.features} by {ranking}": selection.choose(config.features, ranking=ranking, n_controls=0, **options)
        for ranking in config.compare
        if by_ranking and ranking != config.ranking
    }
    return chosen, others


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


def untrained(names: Sequence[str], config: InterveneConfig) -> list[str]:
    """The tasks that post-training never saw; `ConfigError` where none is left to pool."""
    left = [name for name in names if name not in config.trained]
    if not left:
        raise ConfigError(
            "Every task is named in trained; the verdict needs at least one that post-training never saw."
        )
    return left


def control_match(selection: Selection, *, n_random: int) -> dict[str, Any]:
    """How near the random sets come to the selection: mean density, decoder norm and write, and how varied they are."""
    scores = selection.scores
    columns = {
        "density": scores.density,
        "decoder_norm": scores.decoder_norm,
        "write": scores.decoder_norm * scores.mean_act,
    }
    controls = [list(ids) for ids in selection.controls[:n_random]]
    drawn = [feature for ids in controls for feature in ids]
    return {
        "selected": {name: float(values[list(selection.features)].mean()) for name, values in columns.items()},
        "random": {name: float(values[drawn].mean()) if drawn else None for name, values in columns.items()},
        "distinct_features_drawn": len(set(drawn)),
    }


def assemble(
    selection: Selection,
    conditions: Sequence[Condition],
    letters: Mapping[str, Mapping[str, str]],
    tasks: Sequence[Task],
    config: InterveneConfig,
) -> dict[str, Any]:
    """Everything that ``results.json`` holds, from the outcomes alone."""
    names = [task.name for task in tasks]
    held_out = untrained(names, config)
    right: dict[str, Right] = {
        name: {task: [letter == "R" for letter in text] for task, text in row.items()} for name, row in letters.items()
    }
    rows = condition_results(conditions, right, held_out=held_out, base=config.base, seed=config.seed)
    for row in rows:
        row["unparsed"] = {
            task: text.count("U") / len(text) if text else None for task, text in letters[row["name"]].items()
        }
    judged = verdicts(rows, names, config)
    return {
        "site": selection.site,
        "pair": [config.base, config.tuned],
        "rule_of_features": selection.rule,
        "ranking": selection.ranking,
        "features": list(selection.features),
        "note": selection.note,
        "tasks": names,
        "held_out": held_out,
        "trained": [name for name in names if name in config.trained],
        "n_per_task": {task.name: len(task.samples) for task in tasks},
        "samples": {task.name: [sample.id for sample in task.samples] for task in tasks},
        "readout": {"transplant": "joint", "ablate, clamp, scale": str(Readout(config.readout, config.near))},
        "control_match": control_match(selection, n_random=config.n_random),
        "conditions": rows,
        "verdicts": judged,
        "verdict": headline(judged, config),
        "rule": rule_text(config),
        "smallest_sets": smallest_sets(rows, config),
    }


def smallest_sets(rows: Sequence[Mapping[str, Any]], config: InterveneConfig) -> dict[str, dict[str, Any]]:
    """Per host, the smallest measured head of the ranking that reaches half and nine tenths of the pooled ceiling."""
    result: dict[str, dict[str, Any]] = {}
    for host in (config.base, config.tuned):
        sizes = sorted(
            (row["n_features"], row["share_of_ceiling"][POOLED])
            for row in rows
            if row["model"] == host and row["edit"] == "transplant" and row["set_kind"] in ("size", "selected")
        )
        result[host] = {
            f"{goal:.0%}": next((n for n, share in sizes if share is not None and share >= goal), None)
            for goal in (0.5, 0.9)
        }
    return result
