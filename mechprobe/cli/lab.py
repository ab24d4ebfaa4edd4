"""`mechprobe lab`: build an embedded lab, or show what one holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.long_running import long_running, long_running_without_models

app = typer.Typer(no_args_is_help=True, help="Build the embedded lab, or show what one holds.")


@app.command()
@long_running
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder of the lab.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="shared-marker, all-weights, own-markers (the null), mechanisms, or compiled (no training).",
        ),
    ] = "shared-marker",
    seed: Annotated[int, typer.Option("--seed", min=0, help="First pre-training seed that is tried.")] = 0,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Mechanisms of a compiled lab, 1 to 10; 4 by default.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="full, or small for tests (seconds).")] = "full",
    base: Annotated[
        Path | None, typer.Option("--base", help="Base folder of a lab with the same pre-training.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Empty the folder and start again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Pre-train the base, post-train its arms, and measure them all; an interrupted build resumes."""
    from mechprobe.errors import ConfigError
    from mechprobe.lab.builder import build as build_lab
    from mechprobe.lab.compiled.build import NAME, build_compiled

    if recipe == NAME:
        if scale != "full" or base is not None:
            raise ConfigError("A compiled lab is not trained and takes neither --scale nor --base; leave them out.")
        manifest = build_compiled(out, rank=4 if rank is None else rank, seed=seed, force=force)
    elif rank is not None:
        raise ConfigError(f"--rank belongs to --recipe {NAME}; the recipe '{recipe}' has none.")
    else:
        manifest = build_lab(recipe, out, seed=seed, scale=scale, base=base, force=force)
    _show(manifest, out, as_json)


@app.command()
@long_running_without_models
def info(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a lab; the shipped one by default.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Which shipped lab.")] = "shared-marker",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Print accuracy per skill and model, comparisons, ceilings, gates and the forced-marker baseline."""
    from mechprobe.lab.summary import read_lab, shipped

    place = folder or shipped(recipe)
    _show(read_lab(place), place, as_json)


def _show(manifest: dict[str, object], folder: Path, as_json: bool) -> None:
    """Print a manifest for people or for programs."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.lab.summary import summary

    if as_json:
        say_json(manifest)
        return
    say(summary(manifest))
    say(f"\nLab: {folder}\nNext: mechprobe run --config {folder / 'run.toml'}")
