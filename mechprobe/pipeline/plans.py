"""What a stage would do, for ``--dry-run``: as text and as JSON. Nothing is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.stage import check_source
from mechprobe.formatting import byte_size
from mechprobe.pipeline.dictionaries import plan_dictionary_seeds
from mechprobe.pipeline.run import Run
from mechprobe.pipeline.upstream import missing_stages
from mechprobe.planning.machine import rates_here
from mechprobe.run_layout import CHAIN
from mechprobe.stage_folder import Stage

if TYPE_CHECKING:
    from mechprobe.evals.config import HarnessConfig
    from mechprobe.features.config import NullKind
    from mechprobe.interventions.harness.stage import HarnessWork
    from mechprobe.interventions.stage import Work


@dataclass(frozen=True)
class Plan:
    """What a stage would do in ``folder``, as text and as JSON values; ``missing`` stages would be made first."""

    stage: str
    folder: Path
    lines: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {
            "stage": self.stage, "folder": str(self.folder), "missing": list(self.missing), "plan": self.lines, **self.data
        }  # fmt: skip


def plan_upstream(run: Run, stage: str, folder: Path) -> Plan | None:
    """The plan of a stage whose upstream stages are missing; None where they are all there."""
    missing = missing_stages(run, stage)
    if not missing or stage == "cache":  # the size of a store does not depend on which site localize chooses
        return None
    if run.config.tasks.file and run.config.prompts.file:
        run.check()
    made = f"{', '.join(missing)} would be made first in {run.folder}, then {stage}"
    return Plan(
        stage,
        folder,
        [f"{made}. `mechprobe run --dry-run` with the same options plans the whole chain."],
        {},
        tuple(missing),
    )


def plan_run(run: Run, n_dictionaries: int | None = None) -> Plan:
    """Models, tasks, the size and time of the store, and what several dictionaries add."""
    cache, tasks = plan_cache_stage(run), run.config.load_tasks()
    samples = {task.name: len(task.samples) for task in tasks}
    models = {model.name: str(model.path) for model in run.family}
    lines = [
        f"models       {', '.join(f'{name} ({path})' for name, path in models.items())}",
        f"tasks        {', '.join(f'{name} {n}' for name, n in samples.items())}",
        f"cache        {'; '.join(cache.lines)}",
        f"run folder   {run.folder}",
    ]
    data = {"stages": [place.name for place in CHAIN], "models": models, "tasks": samples, "cache": cache.data}
    if n_dictionaries is not None:
        line, data["dictionaries"] = plan_dictionary_seeds(run, n_dictionaries)
        lines.insert(-1, f"dictionaries {line}")
    return Plan("run", run.folder, lines, data)


def plan_localize(run: Run) -> Plan:
    """Sites × directions × samples."""
    config = run.config.localize
    sites = [str(site) for site in run.family.sites()] if config.sites == "all" else list(config.sites)
    samples = sum(len(selecting.take(config.n_per_task).samples) for selecting, _ in run.halves())
    data = {"sites": sites, "samples": samples}
    return Plan("localize", run.layout.localize, [f"{len(sites)} sites × 2 directions × {samples} samples"], data)


def plan_cache_stage(run: Run) -> Plan:
    """Rows and bytes of the store; its time, from a probe of the models, where this machine is not calibrated.

    Raises:
        StoreError: The store would not fit on the disk.
    """
    from mechprobe.cache.harvest.estimate import estimate_time
    from mechprobe.cache.harvest.plan import plan_of
    from mechprobe.cache.harvest.prompts import prepare_prompts
    from mechprobe.data.sources import as_prompts

    cache = run.config.cache
    sites = cache.sites if cache.sites or not run.config.tasks.file else (str(run.family.sites()[-1]),)
    prepared = prepare_prompts(run.family, as_prompts(run.config.prompt_source()), cache.replace(sites=sites))
    plan = plan_of(run.family, prepared, run.layout.cache)
    plan.require_space()
    data, missing, lines = plan.to_json(), missing_stages(run, "cache"), [str(plan)]
    if not rates_here(run.config.device)[1]:
        estimate = estimate_time(run.family, prepared)
        data, lines = {**data, "time": asdict(estimate)}, [*lines, str(estimate)]
    lines += ["localize would be run first, to choose the site"] * bool(missing)
    return Plan("cache", run.layout.cache, lines, data, tuple(missing))


def plan_train_sae(run: Run) -> Plan:
    """Size of the dictionary and tokens to train on."""
    settings = run.config.train_sae
    if settings.mode != "cache":
        return _plan_live(run)
    store = settings.source(run.layout.cache, lambda: run.family, run.layout.crosscoder)
    shape, schedule = settings.resolve(store)
    n_weights, distinct = 2 * shape.d_all * shape.d_sae, int(store.in_split("train").sum())
    line = (
        f"{shape.n_models} models × width {shape.d_all // shape.n_models} → {shape.d_sae:,} features "
        f"({shape.variant}, {n_weights:,} weights); {schedule.n_tokens:,} tokens, at most {distinct:,} of them distinct"
    )
    data = {"crosscoder": shape.model_dump(mode="json"), "training": schedule.model_dump(mode="json"),
            "n_weights": n_weights, "distinct_tokens": distinct}  # fmt: skip
    return Plan("train-sae", run.layout.crosscoder, [line], data)


def _plan_live(run: Run) -> Plan:
    """What the modes ``stream`` and ``ring`` read and write."""
    from mechprobe.cache.harvest.plan import plan_cache

    settings = run.config.train_sae
    plan = plan_cache(
        run.family, run.config.prompt_source(), run.layout.cache, run.config.cache.replace(sites=run.sites())
    )
    written = f"at most {min(plan.n_rows, 2 * settings.kept_rows):,} rows are kept in {run.layout.cache}"
    if settings.ring_gb is not None:
        written += f", and at most {settings.ring_gb:g} GB pass through the ring"
    return Plan("train-sae", run.layout.crosscoder, [f"Mode {settings.mode} of {plan}", written], asdict(plan))


def plan_features(run: Run, kinds: "Sequence[NullKind]", seeds: int | None) -> Plan:
    """Rows and read-outs of the table, and the dictionaries that nulls and seeds train."""
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.features.validation.retrain import TrainingSettings
    from mechprobe.features.validation.stage import N_DICTIONARIES

    names = run.crosscoder().model_names
    store = ActivationStore.open(run.layout.cache, models=names)
    n_rows = min(store.n_rows, run.config.features.max_rows or store.n_rows)
    loss = "with" if run.config.models else "without"
    lines = [f"{n_rows:,} rows × {len(names) + 1} read-outs, {loss} the spliced loss"]
    if run.config.models:
        lines.append("Contexts and promoted tokens of every live feature: a second pass over the rows around them.")
    wanted = {f"--null {kind}": N_DICTIONARIES[kind] for kind in kinds}
    if seeds is not None:
        wanted[f"--seeds {seeds}"] = seeds
    for label, n_dictionaries in wanted.items():
        training = TrainingSettings.of(run.layout.crosscoder)
        lines.append(f"{label}: {training.cost(n_dictionaries, n_rows, run.config.nulls)}.")
    return Plan(
        "features", run.layout.features, lines, {"n_rows": n_rows, "models": list(names), "dictionaries": wanted}
    )


def plan_evaluate(run: Run) -> Plan:
    """Models × samples."""
    tasks = [task.take(run.config.evaluate.n_per_task) for task in run.config.load_tasks()]
    samples = {task.name: len(task.samples) for task in tasks}
    settings = run.config.evaluate
    check_source(run.family, run.config.load_tasks(), settings)
    source = {
        "hf": "",
        "endpoint": f", asked at {settings.endpoint.base_url}",
        "import": f", from {', '.join(settings.imports)}",
    }
    line = f"{len(run.family)} models × {sum(samples.values())} samples{source[settings.generation]}"
    return Plan("evaluate", run.layout.evals, [line], {"models": run.family.names, "samples": samples})


def plan_select(run: Run) -> Plan:
    """The rule, the ranking, the samples that may select, and those that do. What `select` would refuse is refused here too."""
    from mechprobe.evals.stage import load_outcomes
    from mechprobe.selection.gained import gained_samples

    config = run.config.select
    samples = {selecting.name: len(selecting.samples) for selecting, _ in run.halves()}
    found = gained_samples(load_outcomes(run.layout.evals), config, run.held_out())
    gained = {task: len(ids) for task, ids in found.ids.items()}
    line = f"{config.rule} by {config.ranked_by} from {sum(gained.values())} of {sum(samples.values())} samples"
    data = {"rule": config.rule, "ranking": config.ranked_by, "samples": samples, "gained": gained}
    return Plan("select", run.layout.selection, [f"{line}, with {config.n_controls} control sets"], data)


def plan_intervene(run: Run) -> Plan:
    """Conditions × samples. What `intervene` would refuse before it loads a model is refused here too."""
    from mechprobe.interventions.result import json_value
    from mechprobe.interventions.stage import prepare
    from mechprobe.interventions.verdicts.results import smallest_effects
    from mechprobe.report.tables.interventions import smallest_sentence

    work = prepare(**run.intervention())
    Stage.check(run.layout.interventions, **work.stage, force=run.force)
    chosen, samples = work.runner.selection, sum(len(task.samples) for task in work.runner.tasks)
    note = f" ({chosen.note})" if chosen.note else ""
    lines = [f"{len(chosen.features)} features{note}: {len(work.conditions)} conditions × {samples} samples"]
    kinds = Counter(condition.set_kind for condition in work.conditions)
    lines.append("conditions by kind: " + ", ".join(f"{kind} {n}" for kind, n in kinds.items()))
    lines += _readout_lines(work)
    if work.runner.rivals:
        fits = sum(len(task.samples) for task in work.fitting)
        tuned = sum(c.how == "rival" and work.runner.rivals[c.features].tuned for c in work.conditions)
        n_doses = tuned * len(work.runner.config.rival_doses)
        lines.append(
            f"rivals: {len(work.runner.rivals)}, fitted on {fits} samples of the selection halves, with {n_doses} generations of "
            "these samples for the doses"
        )
    found = smallest_effects(work.runner.tasks, work.runner.config)
    smallest = {task: json_value(row) for task, row in found.items()}
    lines += filter(None, [chosen.never_active.sentence, smallest_sentence({"smallest": smallest})])
    data = {"features": list(chosen.features), "conditions": len(work.conditions), "samples": samples}
    data |= {"smallest": smallest}
    return Plan("intervene", run.layout.interventions, lines, data)


def _readout_lines(work: "Work | HarnessWork") -> list[str]:
    """How the read-out of transplants will be chosen; empty where the settings name it, or nothing is transplanted."""
    samples = sum(len(task.samples) for task in work.fitting)
    if not work.runner.config.chooses_readout:
        return []
    return [
        f"read-out of transplants: joint or swap, chosen on {samples} samples of the selection halves when the stage runs"
    ]


def plan_harness(run: Run, tasks: Sequence[str | Path], settings: "HarnessConfig") -> Plan:
    """Conditions × tasks of lm-evaluation-harness, with the refusals of `plan_intervene`."""
    from mechprobe.interventions.harness.result import truncated_sentence
    from mechprobe.interventions.harness.stage import prepare_harness

    work = prepare_harness(**run.edits(), tasks=tasks, harness=settings)
    Stage.check(run.layout.harness, **work.stage, force=run.force)
    lines = [f"{len(work.conditions)} conditions × {', '.join(work.tasks.names)}", *_readout_lines(work)]
    lines += filter(None, [truncated_sentence(work.truncated)])
    data = {"conditions": len(work.conditions), "tasks": list(work.tasks.names), "truncated": work.truncated}
    return Plan("harness", run.layout.harness, lines, data)


def plan_baselines(run: Run) -> Plan:
    """The SAEs that would be trained, and those that are given."""
    from mechprobe.dictionary.baselines import plan as baselines

    plan = baselines.plan_baselines(
        run.layout.crosscoder, run.layout.cache, run.config.baselines, quality=run.config.features
    )
    names = [name for name in plan.crosscoder.model_names if name not in plan.given]
    lines, training = [], plan.training
    if training is not None:
        lines.append(
            f"{len(names)} SAEs ({', '.join(names)}), {training.d_sae:,} features each, k = {training.k}; "
            f"{training.n_tokens:,} tokens each in {training.n_steps:,} steps"
        )
    lines += [f"{name}: given, {folder}" for name, folder in plan.given.items()]
    return Plan("baselines", run.layout.baselines, lines, {"train": names if training else [], "given": plan.given})


def plan_emergence(run: Run) -> Plan:
    """What would be recorded, and the dictionaries that would be trained."""
    from mechprobe.cache.harvest.plan import plan_cache
    from mechprobe.emergence.arms import find_arms
    from mechprobe.emergence.dictionaries import all_jobs

    settings, chosen = run.config, run.dated(run.config.emergence)
    arms = find_arms(run.family.names, chosen)
    models = dict.fromkeys([chosen.base, *(name for arm in arms for name in arm.checkpoints)])
    plan = plan_cache(
        run.family.subset(*models), settings.prompt_source(), run.layout.checkpoints / "cache", settings.cache
    )
    jobs = all_jobs(arms, chosen)
    d_sae = settings.train_sae.d_sae or 16 * max(plan.widths.values())
    weights = sum(2 * d_sae * sum(plan.widths[name] for name in job.models) for job in jobs)
    tokens = settings.train_sae.n_tokens or 4 * plan.n_rows
    lines = [
        str(plan),
        *(f"arm {arm.name}: {chosen.base}, {', '.join(arm.checkpoints)} (spaced by {arm.spaced_by})" for arm in arms),
        f"{len(jobs)} dictionaries × {d_sae:,} features × {tokens:,} tokens ({weights:,} weights in all): "
        + ", ".join(job.name for job in jobs),
    ]
    data = {"arms": {arm.name: list(arm.checkpoints) for arm in arms}, "dictionaries": [job.name for job in jobs]}
    return Plan("emergence", run.layout.emergence, lines, {**data, "store": asdict(plan)})


def plan_sweep(run: Run) -> Plan:
    """Cells, those that are finished, and what the benchmarks are. What `sweep` would refuse before it asks is refused here too."""
    from mechprobe.sweep.cells import Cells
    from mechprobe.sweep.stage import prepare

    config, family = run.config.sweep, run.family if run.config.models else None
    found = prepare(family, config, text=run.config.text, think=run.config.tasks.think)
    return Plan("sweep", run.layout.sweep, *Cells(run.layout.benchmarks, found, family, force=run.force).plan())


def plan_drift(run: Run) -> Plan:
    """Predicted tokens by model and source, memory and time."""
    from mechprobe.drift.divergence.plan import DriftWork, plan_lines

    work = DriftWork.of(run.compared, run.layout.cache, run.config.drift)
    models = {name: work.family[name].fingerprint for name in (work.texts.base, *work.texts.models)}
    Stage.check(run.layout.drift, name="drift", config=work.identity, models=models, force=run.force)
    return Plan("drift", run.layout.drift, *plan_lines(work, run.layout.drift))


def plan_dynamics(run: Run) -> Plan:
    """Curves, checkpoints and simulated curves."""
    from mechprobe.dynamics.stage import open_source

    found = open_source(run.scores, run.layout.benchmarks, run.config.dynamics, run.dated(run.config.emergence))
    return Plan("dynamics", run.layout.dynamics, found.lines, {"curves": found.curves})


def plan_probe(run: Run) -> Plan:
    """Items, arms, and what is read besides outcomes. What `probe` would refuse before it loads a model is refused here too."""
    from mechprobe.drift.probe.stage import prepare

    family = run.family if run.config.models else None
    work = prepare(run.layout.evals, family, run.dated(run.config.probe), **run.probe_inputs())
    lines = [f"{len(work.models)} models × {len(work.items.samples)} items, {run.config.probe.draws} bootstrap draws"]
    lines += [f"arm {arm.name}: {', '.join(arm.checkpoints)} (spaced by {arm.spaced_by})" for arm in work.arms]
    if work.probed and work.prompts is not None:
        chosen, sites = len(work.prompts.chosen), [str(site) for site in work.prompts.sites]
        lines.append(f"linear probes: {len(work.models)} models × {len(sites)} sites × {chosen} items")
    data = {"models": list(work.models), "arms": {arm.name: list(arm.checkpoints) for arm in work.arms}}
    data |= {"linear": bool(work.probed and work.prompts), "features": bool(work.dictionary and work.prompts)}
    return Plan("probe", run.layout.probe, [*lines, *work.notes], data)


def plan_weights(run: Run) -> Plan:
    """Sizes of the models, matrices by method, time and memory. Headers are read, and heads that may be embeddings."""
    from mechprobe.drift.weights.compared import compare
    from mechprobe.drift.weights.plan import plan_weights as plan

    run.config.require_models()
    compared, config = compare(run.config.models, run.config.weights.base), run.config.weights
    found = plan(compared, config)
    lines = [
        ", ".join(f"{name} {byte_size(size)}" for name, size in found.bytes.items()),
        f"{found.weights:,} weights with {found.parameters:,} parameters; singular values of {found.exact:,} matrices exact, of "
        f"{found.estimated:,} (smaller side beyond {config.exact_up_to}) estimated",
        f"about {max(found.seconds / 60, 0.1):,.1f} minutes and {byte_size(found.memory)} of memory beside the program",
    ]
    return Plan("weights", run.layout.weights, lines, asdict(found))
