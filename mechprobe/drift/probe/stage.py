"""``mechprobe probe``: skill profiles over checkpoints, what the models hold inside, and what the drift goes along with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.drift.probe.behaviour import measure_behaviour
from mechprobe.drift.probe.behaviour_result import Behaviour
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.correlation import correlations
from mechprobe.drift.probe.items import Items, models_of
from mechprobe.drift.probe.lowlevel import Numbers, numbers_of
from mechprobe.drift.probe.readings import PART, Prompts, dictionary_site, feature_use, linear_probes, targets_of
from mechprobe.drift.probe.result import RESULT_FILE, FeatureUse, LinearProbe, ProbeResult
from mechprobe.emergence.arms import Arm, all_arms
from mechprobe.environment import require
from mechprobe.errors import ConfigError
from mechprobe.evals.stage import load_outcomes
from mechprobe.formatting import short_list
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.records import Outcomes
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training.storage import read_config

_NO_MODELS = "No linear probes and no use of features: no models were given."


@dataclass(frozen=True)
class Work:
    """What a probe stage will do, checked: `plan` of the command line and `probe` share it."""

    outcomes: Outcomes
    items: Items
    models: tuple[str, ...]
    arms: tuple[Arm, ...]
    prompts: Prompts | None
    dictionary: Path | None
    inputs: Mapping[str, Path | str]
    numbers: Numbers
    notes: tuple[str, ...]

    @property
    def probed(self) -> bool:
        """Whether there are linear probes."""
        return self.prompts is not None and self.prompts.config.linear.items > 0 and bool(targets_of(self.items))


def prepare(
    evals: Path | str,
    family: ModelFamily | None,
    config: ProbeConfig,
    *,
    tasks_file: Path | str | None,
    crosscoder: Path | str | None,
    drift: Path | str | None,
    weights: Path | str | None,
) -> Work:
    """Read the outcomes and check everything that can be refused before any model is loaded; arguments as for `probe`.

    Raises:
        ArtifactError: A folder is missing, unfinished or another stage's.
        ConfigError: A named model, task or site does not exist.
        DependencyError: scikit-learn is not installed, which only linear probes need.
    """
    outcomes = load_outcomes(evals)
    names = models_of(outcomes, config.base)
    arms = tuple(all_arms(names, config.base, config.final_steps))
    models = (config.base, *(name for arm in arms for name in arm.checkpoints))
    items = Items.of(outcomes, tasks_file)
    unknown = [task for task in config.trained if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(
            f"tasks.trained (or probe.trained) names '{unknown[0]}', but the evaluated tasks are {', '.join(outcomes.tasks)}; set it to tasks "
            "among these, or to [] if post-training saw none of them."
        )
    lacking = [name for name in models if family is not None and name not in family]
    if lacking:
        raise ConfigError(
            f"{evals} has outcomes of {short_list(lacking)}, not among the models; add what is missing to [models] of the "
            f"configuration, or give all {len(models)} models with --models NAME=PATH ({lacking[0]}=FOLDER)."
        )
    inputs = {"evals": evals, "tasks": tasks_file, "crosscoder": crosscoder, "drift": drift, "weights": weights}
    prompts = None if family is None else Prompts(family, items, outcomes, config)
    notes = _notes(items, config, prompts)
    dictionary = None
    if prompts is not None:
        dictionary, note = _dictionary(crosscoder, prompts.family, config.base)
        notes += [note] if note else []
        if config.linear.items and targets_of(items):
            _ = prompts.sites
            require("sklearn", "The linear probes of `mechprobe probe`")
    for name, folder in (("drift", drift), ("weights", weights)):
        if folder is None:
            notes.append(f"No correlation with numbers of `mechprobe {name}`: run it, then `mechprobe probe --force`.")
    given = {name: path for name, path in inputs.items() if path is not None}
    numbers = numbers_of(drift, weights, config.base)
    return Work(outcomes, items, models, arms, prompts, dictionary, given, numbers, tuple(notes))


def probe(  # noqa: PLR0913 - the promised entry point; all but the first two are keyword options
    evals: Path | str,
    family: ModelFamily | None = None,
    *,
    out: Path | str = "probe",
    config: ProbeConfig | None = None,
    tasks_file: Path | str | None = None,
    crosscoder: Path | str | None = None,
    drift: Path | str | None = None,
    weights: Path | str | None = None,
    force: bool = False,
) -> ProbeResult:
    """Follow the behaviour of base over the checkpoints of post-training.

    Args:
        evals: Finished evaluate stage. ``rl@step_000040`` is a checkpoint of ``rl``, and ``rl`` its last one.
        family: Its models, for linear probes and the use of features; None leaves both out.
        out: Stage folder for ``probe.json`` and ``manifest.json``.
        config: Settings; the defaults if None.
        tasks_file: The tasks file that was evaluated, whose lines have chance rates and pairs of items; None reads no further
            labels than those that the ids of skill items give.
        crosscoder: Stage folder of a dictionary over base and some of the models; None leaves the use of features out.
        drift: Finished drift stage of the same models; None leaves correlations with divergence out.
        weights: Finished weights stage of the same models; None leaves correlations with weight statistics out.
        force: Make a finished stage again.

    Returns:
        The result; a finished stage is read back. An interrupted one resumes at the next model.

    Raises:
        ArtifactError: A folder is missing, unfinished, or holds other work.
        ConfigError: A named model, task or site does not exist.
        DependencyError: scikit-learn is not installed, which only linear probes need.
    """
    config = config or ProbeConfig()
    work = prepare(evals, family, config, tasks_file=tasks_file, crosscoder=crosscoder, drift=drift, weights=weights)
    settings, fingerprints = config.model_dump(mode="json"), family.fingerprints if family is not None else {}
    with Stage.open(out, name="probe", config=settings, inputs=work.inputs, models=fingerprints, force=force) as stage:
        if not stage.done:
            _write(stage, work, config)
    return ProbeResult.load(out)


def _write(stage: Stage, work: Work, config: ProbeConfig) -> None:
    linear: tuple[LinearProbe, ...] = ()
    use: tuple[FeatureUse, ...] = ()
    with activity("intervals of the behaviour"):
        behaviour = {
            name: measure_behaviour(scores, work.arms, config)
            for name, scores in work.items.all_scores(work.outcomes, work.models).items()
        }
    if work.prompts is not None and work.probed:
        linear = linear_probes(work.prompts, work.models, stage.folder)
    if work.prompts is not None and work.dictionary is not None:
        with activity("use of features"):
            use = feature_use(work.prompts, work.dictionary)
    with activity("correlations"):
        related = correlations(_drifts(behaviour["right"]), work.arms, work.numbers, config.seed)
    result = ProbeResult(
        folder=stage.folder,
        base=config.base,
        models=work.models,
        n_items=len(work.items.samples),
        labelled=work.items.labelled,
        behaviour=behaviour,
        linear=linear,
        use=use,
        numbers=work.numbers,
        correlations=related,
        notes=work.notes,
    )
    result.save(stage.folder / RESULT_FILE)
    stage.finish(
        outputs=[RESULT_FILE],
        counts={"items": result.n_items, "models": len(work.models)},
        results={"drift_l1": {model: list(value) for model, value in _drifts(behaviour["right"]).items()}},
        seed=config.seed,
    )
    for number in range(len(work.models)):
        (stage.folder / PART.format(number=number)).unlink(missing_ok=True)


def _drifts(found: Behaviour) -> dict[str, Any]:
    """Model → drift (L1)."""
    return {point.model: point.drift_l1 for course in found.arms.values() for point in course.points}


def _notes(items: Items, config: ProbeConfig, prompts: Prompts | None) -> list[str]:
    """Sentences on what has no labels, and on what is left out because of it."""
    notes = []
    if not items.labelled:
        notes.append("Some items have no label of a skill; the name of their task stands for it.")
    if items.n_absent:
        n = len(items.samples)
        notes.append(
            f"The tasks file lacks {items.n_absent} of the {n} evaluated items, whose chance rates are unknown."
        )
    if items.n_absent is None:
        notes.append("No tasks file was given, so that scores are not corrected for chance.")
    elif not any(items.chance):
        notes.append("No item states a chance rate, so that scores are not corrected for chance.")
    if prompts is None:
        notes.append(_NO_MODELS)
    elif not config.linear.items:
        notes.append("No linear probes: probe.linear.items is 0.")
    elif len(targets_of(items)) < 2:
        left = [name for name in ("skill", "domain") if name not in targets_of(items)]
        notes += [f"No linear probe of the {name}: all items have the same." for name in left]
    return notes


def _dictionary(folder: Path | str | None, family: ModelFamily, base: str) -> tuple[Path | None, str]:
    """The dictionary whose features are followed, or the sentence why there is none."""
    if folder is None:
        return None, "No use of features: the run has no dictionary; `mechprobe train-sae` makes one."
    left_out, site = f"No use of features: the dictionary {folder} ", dictionary_site(folder)
    names = read_config(Path(folder)).model_names
    missing = [name for name in names if name not in family]
    if site is None:
        return None, f"{left_out}reads several sites."
    if missing or base not in names:
        return None, left_out + (f"has the model {missing[0]}, which the run lacks." if missing else f"lacks {base}.")
    Site.parse(site).check(family.n_layers)
    return Path(folder), ""
