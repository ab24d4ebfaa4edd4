"""``mechprobe run --dictionary-seeds``: the run's verdict again with dictionaries of other training seeds.

Every further dictionary is a run of its own below ``dictionaries/``. It reads the store, the outcomes and the site of the run, so
only the seed of the training differs: the order of the rows and the initial weights.
"""

from collections.abc import Callable
from typing import Any

from mechprobe.errors import ConfigError, SelectionError
from mechprobe.interventions.dictionaries.result import DictionarySeeds
from mechprobe.interventions.dictionaries.stage import DictionaryFolders, compare_dictionaries
from mechprobe.pipeline.run import Run
from mechprobe.pipeline.upstream import timed
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST, read_manifest

REPEATED = ("crosscoder", "features", "selection", "interventions")
"""Folders of the stages that every further dictionary has of its own."""


def dictionary_seeds(run: Run, n: int, *, say: Callable[[str], Any] = lambda _: None) -> DictionarySeeds:
    """Train and judge further dictionaries, and compare their sets and verdicts with those of a finished run.

    Finished dictionaries are kept, and an interrupted one is resumed. Every stage has the settings of the run. `intervene` runs
    the main edits with their controls and rivals, without doses, sizes, other rankings and left-out tasks, which enter no
    verdict.

    Args:
        run: A run whose interventions are finished.
        n: Number of dictionaries, the run's own included; they take the training seeds s, s + 1, ...
        say: Receives a line after each stage.

    Raises:
        ConfigError: ``n`` is below 2, or the set is named by feature ids (`check_dictionary_seeds`).
        ArtifactError: A stage of the run is not finished, or a further dictionary was made with other settings.
    """
    check_dictionary_seeds(run, n)
    layout = run.layout
    folders = [
        DictionaryFolders(
            run.config.train_sae.seed, layout.crosscoder, layout.features, interventions=layout.interventions
        )
    ]
    read_manifest(layout.interventions)
    folders += [_judged(further_run(run, number), say) for number in range(1, n)]
    compared = layout.dictionary_seeds.parent
    return compare_dictionaries(folders, compared, min_cosine=run.config.nulls.min_cosine, force=run.force)


def stages_with_dictionaries(
    run: Run, n: int | None, *, say: Callable[[str], Any]
) -> list[tuple[str, Callable[[], Any]]]:
    """The stages of the chain; with ``n`` dictionaries, their comparison comes before the report, which shows it."""
    stages = run.stages()
    if n is not None:
        stages.insert(-1, ("dictionaries", lambda: dictionary_seeds(run, n, say=say)))
    return stages


def check_dictionary_seeds(run: Run, n: int | None) -> None:
    """Raise `ConfigError` where the verdicts of ``n`` dictionaries cannot be compared; reads settings only."""
    if n is None:
        return
    if n < 2:
        raise ConfigError(
            f"--dictionary-seeds is {n}; it counts the run's own dictionary, so give 2 or more to compare it with others."
        )
    for name, spec in (("select.rule", run.config.select.rule), ("intervene.features", run.config.intervene.features)):
        if spec and spec.startswith(("ids:", "file:")):
            raise ConfigError(
                f"{name} = '{spec}' names features of one dictionary, and other dictionaries have other features; give a rule "
                "such as top50 for --dictionary-seeds."
            )


def further_run(run: Run, number: int) -> Run:
    """The run of the further dictionary ``number``, from 1 on: the same models, store and outcomes, another training seed."""
    config = seeded(run.config, number)
    folder = run.layout.dictionaries / f"seed-{config.train_sae.seed}"
    shared = {name: getattr(run.layout, name) for name in ("localize", "cache", "evals")}
    further = Run(config, RunLayout(folder).placed(**shared), force=run.force, trust_remote_code=run.trust_remote_code)
    further._family = run._family
    return further


def seeded(config: RunConfig, number: int) -> RunConfig:
    """The settings of the further dictionary ``number``."""
    settings = config.train_sae
    training = {name: value + number if name == "seed" else value for name, value in settings.training.items()}
    return config.replace(
        train_sae=settings.replace(seed=settings.seed + number, training=training),
        intervene=config.intervene.replace(doses=(), sizes=(), compare=(), leave_one_out=False),
    )


def _judged(run: Run, say: Callable[[str], Any]) -> DictionaryFolders:
    """Make the stages of one further dictionary. A rule that chooses no feature in it is a result, not an error."""
    seed, layout = run.config.train_sae.seed, run.layout
    stages = {"train-sae": run.train_sae, "features": run.features, "select": run.select, "intervene": run.intervene}
    made = DictionaryFolders(seed, layout.crosscoder, layout.features, layout.interventions)
    try:
        for name, stage in stages.items():
            timed(f"seed {seed}, {name}", stage, say)
    except SelectionError as error:
        say(f"seed {seed} has no set: {error}")
        return made._replace(interventions=None, note=str(error).rstrip("."))
    return made


def plan_dictionary_seeds(run: Run, n: int) -> tuple[str, dict[str, Any]]:
    """What ``n`` dictionaries add to a run, in words and as JSON values. Times are those of the run's own stages, if finished."""
    check_dictionary_seeds(run, n)
    further = [further_run(run, number) for number in range(1, n)]
    missing = [(each, name) for each in further for name in REPEATED if not _finished(each, name)]
    seeds = [each.config.train_sae.seed for each in further]
    line = f"{n - 1} further, seeds {', '.join(map(str, seeds))}: train-sae, features, select and intervene for each"
    data: dict[str, Any] = {"seeds": seeds, "missing_stages": len(missing)}
    if all(_finished(run, name) for name in REPEATED):
        seconds = {name: float(read_manifest(getattr(run.layout, name))["seconds"]) for name in REPEATED}
        data["seconds"] = round(sum(seconds[name] for _, name in missing), 1)
        weights = run.layout.crosscoder / "weights.safetensors"
        data["n_bytes"] = sum(name == "crosscoder" for _, name in missing) * weights.stat().st_size
        line += (
            f"; {len(missing)} stages to make, about {data['seconds']:,.0f} s from the time they took in this run, and "
            f"{data['n_bytes'] / 1e6:,.1f} MB of weights"
        )
    if run.config.train_sae.mode != "cache":
        line += f"; mode {run.config.train_sae.mode} runs the models again for each"
    return line, data


def _finished(run: Run, name: str) -> bool:
    return (getattr(run.layout, name) / MANIFEST).is_file()
