"""``mechprobe run``: the whole chain from one configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options

if TYPE_CHECKING:
    from mechprobe.pipeline import Run

Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run goes on in it.")]
Until = Annotated[str | None, typer.Option("--until", help="Last stage to run.")]


def run(
    config: options.Config = None,
    out: Out = Path("runs/lab"),
    set_: options.Set = None,
    models: options.Models = None,
    until: Until = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Localize, cache, train-sae, features, evaluate, select, intervene, report. Without --config: the embedded lab."""
    import time

    from mechprobe.cache.harvest.ranks import require_one_process
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings
    from mechprobe.cli.summary import summary_lines
    from mechprobe.errors import ConfigError
    from mechprobe.pipeline import STAGES, Run
    from mechprobe.run_config import RUN_FILE

    require_one_process("mechprobe run")
    if until is not None and until not in STAGES:
        raise ConfigError(f"--until '{until}' is no stage; the stages are {', '.join(STAGES)}.")
    if config is None and models is None:
        from mechprobe.lab.summary import shipped

        config = shipped("shared-marker") / "run.toml"
    settings = load_settings(config, set_, models=models, seed=seed, device=device)
    chain = Run(settings, out, force=force, trust_remote_code=trust_remote_code)
    chain.check()
    if dry_run:
        for line in plan_lines(chain):
            say(line)
        return
    if not (out / RUN_FILE).is_file():
        chain.save_config()
    for name, stage in chain.stages():
        started = time.monotonic()
        stage()
        typer.echo(f"{name:<10} {time.monotonic() - started:6.1f} s", err=True)
        if name == until:
            break
    chain.save_config()  # only now: a refused run must leave the folder's own settings
    if as_json:
        from mechprobe.files import read_json

        say_json(read_json(out / "report" / "report.json") if until in (None, "report") else {"until": until})
        return
    for line in summary_lines(out):
        say(line)


def plan_lines(chain: "Run") -> list[str]:
    """What a run would do and what it would write."""
    from mechprobe.cache.harvest.estimate import estimate_time
    from mechprobe.cache.harvest.plan import plan_of
    from mechprobe.cache.harvest.preparation import prepare
    from mechprobe.data.sources import as_prompts

    settings = chain.config
    sites = settings.cache.sites or (str(chain.family.sites()[-1]),)
    prompts = as_prompts(settings.prompt_source())
    reading = prepare(chain.family, prompts, settings.cache.replace(sites=sites))
    plan = plan_of(chain.family, reading, chain.folder / "cache")
    plan.require_space()
    tasks = settings.load_tasks()
    samples = ", ".join(f"{task.name} {len(task.samples)}" for task in tasks)
    return [
        f"models       {', '.join(f'{model.name} ({model.path})' for model in chain.family)}",
        f"tasks        {samples}",
        f"cache        {plan}",
        f"cache time   {estimate_time(chain.family, reading)}",
        f"run folder   {chain.folder}",
        "Nothing was written.",
    ]
