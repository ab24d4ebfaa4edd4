"""`mechprobe lab`: build an embedded lab, or show what one holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build the embedded lab, or show what one holds.")


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder of the lab.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help="shared-marker, all-weights, or own-markers: the null.")
    ] = "shared-marker",
    seed: Annotated[int, typer.Option("--seed", help="First pre-training seed that is tried.")] = 0,
    scale: Annotated[str, typer.Option("--scale", help="full, or small for tests (seconds).")] = "full",
    base: Annotated[
        Path | None, typer.Option("--base", help="Base folder of a lab with the same pre-training.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Empty the folder and start again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Pre-train the base, post-train its arms, and measure them all; an interrupted build resumes."""
    from mechprobe.lab.builder import build as build_lab

    manifest = build_lab(recipe, out, seed=seed, scale=scale, base=base, force=force)
    _show(manifest, out, as_json)


@app.command()
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
    from mechprobe.files import dump_json
    from mechprobe.lab.summary import summary

    if as_json:
        typer.echo(dump_json(manifest), nl=False)
        return
    typer.echo(summary(manifest))
    typer.echo(f"\nLab: {folder}\nNext: mechprobe run --config {folder / 'run.toml'}")
