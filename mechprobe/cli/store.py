"""``mechprobe store info | verify | export``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.long_running import long_running

Folder = Annotated[Path, typer.Argument(help="Activation store, written by `mechprobe cache`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="New file (safetensors) or new folder (npy).")]
Format = Annotated[str | None, typer.Option("--format", help="safetensors or npy. By default from the name of --out.")]
AsFloat32 = Annotated[bool, typer.Option("--float32", help="Write float32 instead of the stored dtype.")]

app = typer.Typer(no_args_is_help=True, help="Describe an activation store, verify every hash, or export it.")


@app.command("info")
@long_running
def info(folder: Folder, as_json: options.Json = False) -> None:
    """Print models, sites, rows and hashes of a store."""
    from mechprobe.cache.result import CacheCounts
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.cli.printing import say, say_json

    store = ActivationStore.open(folder)
    counts = CacheCounts.of(store)
    if as_json:
        say_json(
            {
                "models": store.fingerprints,
                "widths": store.widths,
                "sites": [str(site) for site in store.sites],
                "dtype": store.dtype,
                "counts": counts.to_json(),
                "stream": store.stream_hash,
                "tokenizer": store.tokenizer_fingerprint,
            }
        )
        return
    for name, width in store.widths.items():
        say(f"model     {name}  width {width}  weights {store.fingerprints[name][:16]}")
    say(f"sites     {', '.join(str(site) for site in store.sites)} ({store.dtype})")
    if counts.whole_rows is not None:
        say(f"subset    {counts.rows:,} of {counts.whole_rows:,} rows, for train-sae --mode stream or ring")
    say(f"rows      {counts.rows:,} of {counts.sequences:,} sequences, {counts.held_out_rows:,} held out")
    say(f"size      {counts.bytes / 1e6:,.1f} MB in {counts.shards} shards per model")
    say(f"stream    {store.stream_hash}")
    say(f"tokenizer {store.tokenizer_fingerprint}")


@app.command("verify")
@long_running
def verify(folder: Folder, as_json: options.Json = False) -> None:
    """Hash every file again; print one line per changed file and exit with code 2 if there is one."""
    from mechprobe.cache.store.verify import verify_store
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import StoreError

    problems = verify_store(folder)
    if as_json:
        say_json({"folder": str(folder), "problems": [str(problem) for problem in problems]})
    elif not problems:
        say(f"{folder}: every file has the hash it was written with.")
    else:
        for problem in problems:
            say(str(problem))
    if problems:
        raise StoreError(f"{folder} has {len(problems)} damaged files; make it again with --force, or restore a copy.")


@app.command("export")
@long_running
def export(folder: Folder, out: Out, format_: Format = None, float32: AsFloat32 = False) -> None:
    """Export ``<site>/<model>`` and the token rows as safetensors or NumPy arrays."""
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.cache.store.export import export_numpy, export_safetensors
    from mechprobe.cli.printing import say
    from mechprobe.errors import ConfigError

    chosen = format_ or ("safetensors" if out.suffix == ".safetensors" else "npy")
    if chosen not in ("safetensors", "npy"):
        raise ConfigError(f"--format '{chosen}' is not known; give safetensors or npy.")
    write = export_safetensors if chosen == "safetensors" else export_numpy
    n_bytes = write(ActivationStore.open(folder), out, "float32" if float32 else "stored")
    say(f"Written to {out} ({n_bytes / 1e6:,.1f} MB)")
