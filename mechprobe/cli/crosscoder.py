"""``mechprobe crosscoder import | export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.long_running import long_running

File = Annotated[Path, typer.Argument(help="Weights file (.pt, .safetensors), or a folder with one.")]
Folder = Annotated[Path, typer.Argument(help="Crosscoder, written by `train-sae` or `crosscoder import`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
SaeOut = Annotated[Path, typer.Option("--out", "-o", help="New folder for the SAE.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="crosscoder_learning, opd, llamascopium, replication; detected by default."),
]
Names = Annotated[
    str | None, typer.Option("--names", metavar="A,B,...", help="Names of the models, in the order of the file.")
]
Scale = Annotated[
    str | None,
    typer.Option("--scale", metavar="S,S,...", help="Divisor of each model's activations, when the file lacks it."),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Store of the same models, on which the import is measured.")
]
SiteName = Annotated[str | None, typer.Option("--site", help="Site of the crosscoder: resid_post.<layer>.")]
Model = Annotated[str, typer.Option("--model", help="Model whose slice is exported.")]
Readout = Annotated[str, typer.Option("--readout", help="Read-out of the other models' slots: single or swap.")]

app = typer.Typer(
    no_args_is_help=True, help="Import a published crosscoder, or export one model's slice as a sae-lens SAE."
)


@app.command("import")
@long_running
def import_(
    file: File,
    out: Out = Path("crosscoder"),
    format_: Format = None,
    names: Names = None,
    scale: Scale = None,
    cache: Cache = None,
    site: SiteName = None,
    as_json: options.Json = False,
    force: options.Force = False,
) -> None:
    """Import a published crosscoder for `features`, `select` and `intervene`; only tensors are read, never code."""
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.dictionary.imported import MISSING, store_crosscoder

    store = ActivationStore.open(cache) if cache is not None else None
    chosen = tuple(name.strip() for name in names.split(",")) if names else None
    found = store_crosscoder(
        file, out, format=format_, names=chosen, scale=_numbers(scale), store=store, site=site, force=force
    )
    shape, metrics = found.crosscoder.config, found.metrics
    if as_json:
        about = {"folder": str(out), "format": found.published.format, "config": shape.model_dump()}
        say_json({**about, "metrics": metrics.to_dict() if metrics else None})
        return
    say(f"{found.published.format}: {', '.join(shape.model_names)} → {shape.d_sae:,} features ({shape.variant})")
    if found.published.hint:
        say(f"the file's own names: {', '.join(found.published.hint)}")
    if metrics is not None:
        say(f"\nHeld-out prompts, n = {metrics.held_out_tokens:,} tokens")
        for line in table_lines({name: {"FVE": f"{fve:.3f}"} for name, fve in metrics.fve.items()}, ["FVE"]):
            say(line)
        say(f"L0 {metrics.l0:.1f}   dead {metrics.dead_frac:.3f} of {shape.d_sae:,} features")
    else:
        say("Not measured. Give --cache STORE to measure FVE and L0 on activations of these models.")
    say(f"Missing: {MISSING}.")
    if found.site is None:
        say("Give --site or --cache before `mechprobe select`, because later stages take the site from here.")
    say(f"\nWritten to {out}\nNext: mechprobe features --crosscoder {out} --cache {cache or 'STORE'}")


@app.command("export")
@long_running
def export(folder: Folder, model: Model, out: SaeOut, readout: Readout = "single") -> None:
    """Export one model's slice for `sae_lens.SAE.load_from_disk`, with the same features under the chosen read-out."""
    from mechprobe.cli.printing import say
    from mechprobe.errors import ArtifactError, ConfigError
    from sae_training import Crosscoder
    from sae_training.atomic import atomic_path

    if readout not in ("single", "swap"):
        raise ConfigError(f"--readout '{readout}' is not possible for one model; take single or swap.")
    if out.exists():
        raise ArtifactError(f"{out} exists; give a new folder with --out.")
    crosscoder = Crosscoder.load(folder)
    found: Any = readout
    slice_ = crosscoder.to_sae(model, readout=found)
    with atomic_path(out) as new:
        slice_.save_model(new)
    say(f"Written to {out}: the slice of {model}, read-out {readout}, {crosscoder.d_sae:,} features")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    from mechprobe.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--scale {text!r} cannot be read; write numbers with commas, for example 3.6,4.1.") from None
