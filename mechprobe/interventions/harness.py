"""The ``harness`` stage: tasks of lm-evaluation-harness under the edits of a selection, on the harness' own metrics.

Every model is measured clean; the tuned and the base model also under the main edits that `mechprobe intervene` runs
(ablate and transplant, clamp and transplant). Changes are against the clean run of the same model on the same documents.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ConfigError
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.harness import HarnessTasks
from mechprobe.evals.result import HarnessRun
from mechprobe.files import read_json, write_json, write_text
from mechprobe.interventions.conditions.checks import check_belongs
from mechprobe.interventions.conditions.conditions import Condition, fingerprint, plan, readout_name, row_named
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.stage import choose_sets
from mechprobe.interventions.verdicts.assemble import about_features
from mechprobe.markdown import markdown_cell
from mechprobe.models.family import ModelFamily
from mechprobe.selection.stage import Selection
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.statistics import paired_bootstrap, randomization_p
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

RESULTS_FILE = "results.json"
VALUES_FILE = "values.json"
TABLE_FILE = "table.md"
_USED = (
    "base", "tuned", "features", "ranking", "threshold", "edits_base", "edits_tuned", "readout", "near", "positions", "seed",
)  # fmt: skip
NOTE = "lm-eval's own numbers; whether features cause a change is judged by `mechprobe intervene` with its controls."


@dataclass(frozen=True)
class HarnessResults:
    """The harness' metrics under every condition.

    Attributes:
        conditions: One row each: ``name``, ``model``, ``edit``, ``features``, ``set_kind``, ``draw``, ``n_features`` and
            ``metrics``: task → ``metric,filter`` → ``value``, ``stderr``, ``n``, ``change`` (``[difference, low, high, n]``
            against the clean model; a paired bootstrap where the metric is a mean over documents, no interval otherwise;
            None for clean rows) and, where random sets were run, ``p_random``.
        data: Everything in ``results.json``.
    """

    conditions: list[dict[str, Any]]
    data: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> "HarnessResults":
        """Read a finished ``harness`` stage."""
        read_manifest(folder)
        data = read_json(Path(folder) / RESULTS_FILE)
        return cls(data["conditions"], data)

    def condition(self, name: str) -> dict[str, Any]:
        """One row by name, for example ``rl|ablate|top50``."""
        return row_named(self.conditions, name)


@dataclass(frozen=True)
class HarnessWork:
    """What `evaluate_harness` is to run, with everything checked that can be before a model is loaded.

    Attributes:
        runner: Puts conditions in force.
        tasks: Of the harness.
        conditions: What is run.
        stage: What the stage folder is known by: ``name``, ``config``, ``inputs``, ``models`` and ``remake`` of `Stage.open`.
    """

    runner: Runner
    tasks: HarnessTasks
    conditions: list[Condition]
    stage: dict[str, Any]


def prepare_harness(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[str | Path],
    config: InterveneConfig | None = None,
    *,
    harness: HarnessConfig | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
) -> HarnessWork:
    """Everything of `evaluate_harness` that needs no weights; arguments and errors as there."""
    settings, config = harness or HarnessConfig(), config or InterveneConfig()
    check_belongs(selection, crosscoder, family, config, inputs or {})
    if settings.chat_template and not family.tokenizer.chat_template:
        raise ConfigError("--chat-template: the models' tokenizer has no chat template; leave the option out.")
    asked = HarnessTasks(tasks, settings)
    chosen, conditions = planned_conditions(selection, config, settings, crosscoder.model_names, table)
    runner = Runner(family, crosscoder, chosen, [], config)
    runner.check(conditions)
    dumped = config.model_dump(mode="json")
    require_boundary(dumped.get("positions", "all"), asked.likelihood_names)
    identity = {
        **{name: dumped[name] for name in _USED if name in dumped},
        **settings.model_dump(mode="json"),
        "lm_eval": asked.version,
        "tasks": asked.fingerprint,
        "crosscoder": crosscoder.fingerprint,
        "site": chosen.site,
        "sets": fingerprint(conditions),
        **runner.family.reduced_dtypes,
    }
    known_by = {"name": "harness", "config": identity, "inputs": inputs, "models": runner.family.fingerprints}
    return HarnessWork(runner, asked, conditions, {**known_by, "remake": "refused"})


def evaluate_harness(  # noqa: PLR0913 - an entry point like `intervene`
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tasks: Sequence[str | Path],
    out: Path | str = "harness",
    config: InterveneConfig | None = None,
    *,
    harness: HarnessConfig | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> HarnessResults:
    """Run tasks of lm-evaluation-harness on every model, clean, and on base and tuned under the edits of the selection.

    Args:
        family: The crosscoder's models.
        crosscoder: The dictionary.
        selection: The set; ``config.features``, ``ranking`` and ``threshold`` choose another from its scores.
        tasks: YAML files, or names that lm-eval knows.
        out: Stage folder: ``results.json``, ``values.json`` (a number for every document), ``table.md``, the manifest.
        config: Which features and edits.
        harness: Settings of the harness.
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest.
        force: Make a finished stage again.

    Raises:
        DependencyError: lm-eval is not installed.
        InputError: A task cannot be used.
        ConfigError: lm-eval has no such task, or cannot tell the positions of the edits apart.
        ArtifactError: The parts do not belong together (`check_belongs`), or ``out`` holds other work.
    """
    work = prepare_harness(family, crosscoder, selection, tasks, config, harness=harness, table=table, inputs=inputs)
    runner, asked, conditions = work.runner, work.tasks, work.conditions
    with Stage.open(out, **work.stage, force=force) as stage:
        if not stage.done:
            found = _run_all(runner, asked, conditions, stage.folder)
            data = assemble(runner.selection, conditions, found, asked, runner.config)
            write_json(stage.folder / RESULTS_FILE, data)
            write_json(stage.folder / VALUES_FILE, {name: run.values for name, run in found.items()})
            write_text(stage.folder / TABLE_FILE, markdown(data))
            stage.finish(
                outputs=[RESULTS_FILE, VALUES_FILE, TABLE_FILE],
                counts={"conditions": len(conditions), "documents": data["n"]},
                results={"tasks": asked.names},
                seed=runner.config.seed,
            )
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return HarnessResults.load(out)


def require_boundary(positions: str, weighed: Sequence[str]) -> None:
    """Raise `ConfigError` for positions that tell prompt from response in tasks whose log-likelihoods are asked for."""
    if weighed and ("prompt" in positions or "response" in positions):
        raise ConfigError(
            f"lm-eval reads prompt and option of {', '.join(weighed)} in one call, in which an edit cannot tell prompt from "
            f"response; use intervene.positions = 'all' instead of '{positions}'."
        )


def planned_conditions(
    selection: Selection,
    config: InterveneConfig,
    harness: HarnessConfig,
    models: Sequence[str],
    table: "pd.DataFrame | None" = None,
) -> tuple[Selection, list[Condition]]:
    """The set under test; and every model clean, then the main edits of `mechprobe intervene` with their random sets."""
    config = config.replace(n_random=harness.n_random, n_shuffled=1, compare=())
    chosen, _ = choose_sets(selection, config, table)
    clean = [Condition(f"{model}|clean", model, "clean", "none", "clean", "clean") for model in models]
    edits = [condition for condition in plan(chosen, {}, config) if condition.set_kind in ("selected", "random")]
    return chosen, clean + edits


def _run_all(
    runner: Runner, tasks: HarnessTasks, conditions: Sequence[Condition], folder: Path
) -> dict[str, HarnessRun]:
    """Every condition's results; each is kept in a file as it ends, so that an interrupted stage goes on."""
    found: dict[str, HarnessRun] = {}
    for index, condition in enumerate(conditions):
        part = folder / f"part-{index:04d}.json"
        if not part.is_file():
            if sys.stderr.isatty():  # above the bars of the harness itself
                sys.stderr.write(f"{index + 1}/{len(conditions)} {condition.name}\n")
            with runner.in_force(condition):
                tasks.run(runner.family[condition.model]).save(part)
        found[condition.name] = HarnessRun.load(part)
    return found


def assemble(
    selection: Selection,
    conditions: Sequence[Condition],
    found: Mapping[str, HarnessRun],
    tasks: HarnessTasks,
    config: InterveneConfig,
) -> dict[str, Any]:
    """Everything that ``results.json`` holds, from the harness' results alone."""
    rows = [
        {
            "name": c.name,
            "model": c.model,
            "edit": c.edit,
            "features": c.features,
            "set_kind": c.set_kind,
            "draw": c.draw,
            "n_features": len(c.ids),
            "readout": readout_name(c, config),
            "metrics": _against_clean(
                found[c.name], found[f"{c.model}|clean"], clean=c.how == "clean", seed=config.seed
            ),
        }
        for c in conditions
    ]
    first = found[conditions[0].name]
    for row in rows:
        if row["set_kind"] == "selected":
            _add_random(row, rows, first.higher_is_better, gain=row["model"] == config.base)
    return {
        **about_features(selection, config),
        "note": NOTE,
        "lm_eval": tasks.version,
        "tasks": sorted(first.metrics),
        "n": first.n,
        "higher_is_better": first.higher_is_better,
        "conditions": rows,
    }


def _against_clean(
    mine: HarnessRun, host: HarnessRun, *, clean: bool, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for task, metrics in mine.metrics.items():
        result[task] = {}
        for key, cell in metrics.items():
            after, before = (side.values.get(task, {}).get(key) for side in (mine, host))
            value, start = cell.value, host.metrics[task][key].value
            n = mine.n.get(task)
            change = None
            if not clean and value is not None and start is not None:
                change = [value - start, None, None, n]
                if after and before and _is_mean(after, value) and _is_mean(before, start):
                    change = list(paired_bootstrap(before, after, seed=seed))
            result[task][key] = {"value": value, "stderr": cell.stderr, "n": n, "change": change}
    return result


def _is_mean(values: Sequence[float], aggregated: float) -> bool:
    """Whether the harness aggregated a metric by the mean over documents: only then has a paired difference a meaning."""
    return abs(sum(values) / len(values) - aggregated) <= 1e-9 * max(1.0, abs(aggregated))


def _add_random(
    row: dict[str, Any],
    rows: Sequence[Mapping[str, Any]],
    higher: Mapping[str, Mapping[str, bool | None]],
    *,
    gain: bool,
) -> None:
    """Put the mean change of the random sets of the same edit, and the share that does as much, beside a selected set's."""
    draws = [r for r in rows if r["set_kind"] == "random" and (r["model"], r["edit"]) == (row["model"], row["edit"])]
    for task, metrics in row["metrics"].items():
        for key, cell in metrics.items():
            changes = [draw["metrics"][task][key]["change"] for draw in draws]
            known = [change[0] for change in changes if change is not None]
            if cell["change"] is None or not known:
                continue
            better = higher.get(task, {}).get(key.partition(",")[0])
            cell["random_mean"] = sum(known) / len(known)
            cell["n_random"] = len(known)
            if better is not None:
                side = "greater" if gain == better else "less"
                cell["p_random"] = randomization_p(cell["change"][0], known, side=side)


def harness_table(data: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """``(columns, rows)``: a column a task and metric; value ± standard error, and the change against the clean model."""
    columns = [f"{task} {metric(key)}" for task, metrics in data["conditions"][0]["metrics"].items() for key in metrics]
    rows: dict[str, dict[str, str]] = {}
    for row in data["conditions"]:
        if row["set_kind"] == "random":
            continue
        rows[f"{row['model']}  {row['edit']}  {row['features']}"] = {
            f"{task} {metric(key)}": cell_text(cell)
            for task, metrics in row["metrics"].items()
            for key, cell in metrics.items()
        }
    return columns, rows


def metric(key: str) -> str:
    """``acc,none`` as ``acc``; ``exact_match,strict`` as ``exact_match (strict)``."""
    name, _, filter_name = key.partition(",")
    return name if filter_name in ("", "none") else f"{name} ({filter_name})"


def cell_text(cell: Mapping[str, Any]) -> str:
    """One cell: ``0.438 ± 0.063  -0.310 [-0.440, -0.190]``, and the random sets' mean where there are some."""
    if cell["value"] is None:
        return "-"
    text = f"{cell['value']:.3f}" + ("" if cell["stderr"] is None else f" ± {cell['stderr']:.3f}")
    if cell["change"] is None:
        return text
    value, low, high, _ = cell["change"]
    text += f"  {value:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
    if "random_mean" in cell:
        p = f", p = {cell['p_random']:.3f}" if "p_random" in cell else ""
        text += f" ({cell['n_random']} random {cell['random_mean']:+.3f}{p})"
    return text


def markdown(data: Mapping[str, Any]) -> str:
    """The table as Markdown, with n and what the numbers are."""
    columns, rows = harness_table(data)
    n = ", ".join(f"{markdown_cell(task)} {count}" for task, count in data["n"].items())
    lines = [
        f"lm-eval {data['lm_eval']} at {markdown_cell(data['site'])}; documents: {n}. Value ± standard error, change against the clean model "
        "with its paired 95 % bootstrap interval.",
        "",
        "| condition | " + " | ".join(map(markdown_cell, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, cells in rows.items():
        lines.append("| " + " | ".join([markdown_cell(label), *(cells.get(c, "-") for c in columns)]) + " |")
    silent = (data.get("silent") or {}).get("sentence")
    return "\n".join([*lines, "", *([silent, ""] if silent else []), data["note"], ""])
