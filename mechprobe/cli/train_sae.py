"""``mechprobe train-sae``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Cache = Annotated[Path, typer.Option("--cache", help="Activation store, written by `mechprobe cache`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Preset = Annotated[str | None, typer.Option("--preset", help="default, or paper (arXiv 2604.25011: ReLU with L1).")]


def train_sae(
    out: Out = Path("crosscoder"),
    cache: Cache = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    preset: Preset = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:
    """One dictionary over all models of a store; measured on the prompts held out."""
    from mechprobe.activations import ActivationStore
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.cli.settings import load_settings

    extra = {"train_sae": {"preset": preset}} if preset else None
    settings = load_settings(config, set_, seed=seed, device=device, extra=extra)
    chosen = settings.train_sae
    store = ActivationStore.open(cache, models=chosen.models or None)
    crosscoder_config, train_config = chosen.resolve(store)
    if dry_run:
        n_weights = 2 * crosscoder_config.d_all * crosscoder_config.d_sae
        say(
            f"{crosscoder_config.n_models} models × width {crosscoder_config.d_all // crosscoder_config.n_models} → "
            f"{crosscoder_config.d_sae:,} features ({crosscoder_config.variant}, {n_weights:,} weights); "
            f"{train_config.n_tokens:,} tokens, {int(store.in_split('train').sum()):,} of them distinct at most; "
            "nothing was written."
        )
        return

    from mechprobe.activations import train_crosscoder
    from mechprobe.activations.train import METRICS
    from mechprobe.artifacts import read_json

    train_crosscoder(
        store,
        crosscoder_config,
        train_config,
        out,
        site=chosen.site,
        device=settings.device,
        pool_rows=chosen.pool_rows,
        force=force,
    )
    metrics = read_json(out / METRICS)
    if as_json:
        say_json(metrics)
        return
    held_out = metrics["held_out_tokens"]
    rows = {
        name: {"FVE": _number(metrics["fve"][name]), "FVE per token": _number(metrics["fve_per_token"][name])}
        for name in crosscoder_config.source_names
    }
    say(f"Held-out prompts, n = {held_out:,} tokens" if held_out else "No prompt was held out: nothing is measured.")
    for line in table_lines(rows, ["FVE", "FVE per token"], corner="model"):
        say(line)
    dead = f"{_number(metrics['dead_frac'])} of {crosscoder_config.d_sae:,} features"
    say(f"L0 {_number(metrics['l0'], 1)}   dead {dead}")
    say(f"trained on {metrics['tokens']:,} tokens, {metrics['distinct_tokens']:,} distinct, {metrics['steps']:,} steps")
    say(f"\nWritten to {out}\nNext: mechprobe features --crosscoder {out} --cache {cache}")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
