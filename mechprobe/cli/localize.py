"""``mechprobe localize``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Tasks = Annotated[Path | None, typer.Option("--tasks", help="JSON lines of id, task, prompt, answer (and options).")]
Scorer = Annotated[
    str | None,
    typer.Option("--scorer", help="exact, numeric, letter, boxed, final:<MARKER> or python:<MODULE>:<FUNCTION>."),
]
Sites = Annotated[str | None, typer.Option("--sites", help="all, or resid_post.0,resid_post.1 ...")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]


def task_settings(tasks: Path | None, scorer: str | None) -> dict[str, object]:
    """The settings that the task options stand for."""
    section: dict[str, object] = {}
    if tasks is not None:
        section["file"] = str(tasks)
    if scorer is not None:
        section["scorer"] = scorer
    return {"tasks": section} if section else {}


def localize(
    out: Out = Path("localize"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    tasks: Tasks = None,
    scorer: Scorer = None,
    sites: Sites = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Sufficiency and necessity of each site, by residual patching between base and the tuned model."""
    from dataclasses import asdict

    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings
    from mechprobe.cli.summary import ceiling_lines
    from mechprobe.localization.stage import localize as run_localize

    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=task_settings(tasks, scorer))
    chosen = settings.localize
    if sites:
        chosen = chosen.replace(sites="all" if sites == "all" else tuple(sites.split(",")))
    family = settings.family([chosen.base, chosen.tuned], trust_remote_code=trust_remote_code)
    loaded = settings.load_tasks()
    if dry_run:
        count = len(family.sites()) if chosen.sites == "all" else len(chosen.sites)
        samples = sum(len(task.take(chosen.n_per_task).samples) for task in loaded)
        say(f"{count} sites × 2 directions × {samples} samples; nothing was written.")
        return
    ceilings = run_localize(family, loaded, out=out, config=chosen, force=force)
    if as_json:
        say_json(asdict(ceilings))
        return
    for line in ceiling_lines(ceilings):
        say(line)
    say(f"\nWritten to {out}\nNext: mechprobe cache --set cache.sites=['{ceilings.chosen}'] ...")
