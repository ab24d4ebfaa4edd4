"""``mechprobe run``: the whole chain from one configuration."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; the same as --run.")]
Until = Annotated[str | None, typer.Option("--until", help="Last stage to run.")]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--dictionary-seeds",
        metavar="N",
        help="Repeat the verdict with N dictionaries, the run's own and N - 1 of other training seeds, and match their sets.",
    ),
]


@takes_shared_options
def run(shared: Shared, out: Out = None, until: Until = None, dictionary_seeds: Seeds = None) -> None:
    """Run every stage in order: localize, cache, train-sae, features, evaluate, select, intervene, report.

    Without --config and --models, the models are those of the embedded lab. An interrupted run resumes.
    """
    from dataclasses import replace

    from mechprobe.cli.printing import note, say, say_json
    from mechprobe.cli.show import show_lines
    from mechprobe.cli.stage_command import say_plan, with_cost
    from mechprobe.errors import ConfigError
    from mechprobe.files import read_json
    from mechprobe.pipeline.dictionaries import check_dictionary_seeds, stages_with_dictionaries
    from mechprobe.pipeline.plans import plan_run
    from mechprobe.pipeline.upstream import require_run_folder, timed
    from mechprobe.progress import activity
    from mechprobe.stage_folder import require_creatable

    _check_until(until, dictionary_seeds)
    if out is not None and shared.run is not None and out != shared.run:
        raise ConfigError(f"--run {shared.run} and --out {out} name two run folders; give one of them.")
    chain = replace(shared, run=out or shared.run).start()
    check_dictionary_seeds(chain, dictionary_seeds)
    chain.check()
    require_creatable(chain.folder)
    require_run_folder(chain)
    if shared.dry_run:
        with activity("planning"):
            planned = with_cost(chain, plan_run(chain, dictionary_seeds))
        say_plan(planned, as_json=shared.as_json)
        return
    if not chain.layout.run_file.is_file():
        chain.save_config()
    for name, stage in stages_with_dictionaries(chain, dictionary_seeds, say=note):
        timed(name, stage, note)
        if name == until:
            break
    chain.save_config()  # only now: a refused run must leave the folder's own settings
    if shared.as_json:
        say_json(read_json(chain.layout.report_json) if until in (None, "report") else {"until": until})
        return
    for line in show_lines(chain.folder, verbose=shared.verbose):
        say(line)


def _check_until(until: str | None, dictionary_seeds: int | None) -> None:
    from mechprobe.errors import ConfigError
    from mechprobe.run_layout import CHAIN

    names = [place.name for place in CHAIN]
    if until is not None and until not in names:
        raise ConfigError(f"--until '{until}' is not a stage; the stages are {', '.join(names)}.")
    if dictionary_seeds is not None and until not in (None, "report"):
        raise ConfigError(
            f"--dictionary-seeds compares verdicts, which a run until {until} does not reach; leave out --until."
        )
