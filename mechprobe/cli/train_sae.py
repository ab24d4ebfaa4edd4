"""``mechprobe train-sae``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.cache import Sites, cache_settings

if TYPE_CHECKING:
    from mechprobe.cache.store.source import RowSource
    from mechprobe.dictionary.config import TrainSaeConfig
    from mechprobe.run_config import RunConfig

Cache = Annotated[
    Path, typer.Option("--cache", help="Activation store; modes stream and ring write what they keep here.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Mode = Annotated[str | None, typer.Option("--mode", help="cache, stream (no disk) or ring (bounded disk).")]
RingGb = Annotated[float | None, typer.Option("--ring-gb", help="Most that a ring takes on disk, in GB.")]
Preset = Annotated[str | None, typer.Option("--preset", help="default, or paper (arXiv 2604.25011: ReLU with L1).")]


def train_sae(
    out: Out = Path("crosscoder"),
    cache: Cache = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    mode: Mode = None,
    ring_gb: RingGb = None,
    models: options.Models = None,
    prompts: options.Prompts = None,
    sites: Sites = None,
    preset: Preset = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """One dictionary over all models of a store, or of models that run meanwhile; measured on the prompts held out."""
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.cli.settings import load_settings, prompt_settings

    given = {"preset": preset, "mode": mode, "ring_gb": ring_gb}
    extra: dict[str, Any] = {"train_sae": {name: value for name, value in given.items() if value is not None}}
    extra |= cache_settings(sites) | prompt_settings(prompts)
    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=extra)
    chosen = settings.train_sae
    if sites or (chosen.mode != "cache" and settings.cache.sites and chosen.site is None):
        chosen = _at_sites(chosen, settings.cache.sites)
    if dry_run and chosen.mode != "cache":
        say(_live_plan(settings, cache, trust_remote_code=trust_remote_code))
        return
    store = _source(settings, cache, out, force=force, trust_remote_code=trust_remote_code)
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

    from mechprobe.dictionary.stage import METRICS, train_crosscoder
    from mechprobe.files import read_json

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


def _at_sites(chosen: "TrainSaeConfig", sites: tuple[str, ...]) -> "TrainSaeConfig":
    """Train at ``--sites``; the modes that run the models refuse several before anything is written."""
    one = len(sites) == 1
    return chosen.replace(site=sites[0] if one else None, sites=() if one else sites)


def _source(
    settings: "RunConfig", cache: Path, out: Path, *, force: bool = False, trust_remote_code: bool = False
) -> "RowSource":
    """The store, or the models and the small store that is kept of them, made here where it is not there yet."""
    from mechprobe.cache.stage import cache_activations

    chosen = settings.train_sae
    if chosen.mode == "cache":
        return chosen.source(cache, settings.family, out)
    _require_no_whole_store(cache, chosen.mode)
    family = settings.family(trust_remote_code=trust_remote_code)
    cache_activations(family, settings.prompt_source(), out=cache, config=settings.cache, kept=chosen.kept, force=force)
    return chosen.source(cache, lambda: family, out)


def _require_no_whole_store(cache: Path, mode: str) -> None:
    """``--force`` makes the training again; it must not take a whole store for the small one that is kept."""
    from mechprobe.errors import ArtifactError
    from mechprobe.stage_folder import MANIFEST, read_manifest

    if not (cache / MANIFEST).is_file():
        return
    manifest = read_manifest(cache)
    if manifest["stage"] == "cache" and not manifest["config"].get("kept"):
        raise ArtifactError(
            f"{cache} is a whole store; train with mode 'cache', or give mode '{mode}' another --cache."
        )


def _live_plan(settings: "RunConfig", cache: Path, *, trust_remote_code: bool) -> str:
    """What modes stream and ring read, and what they write."""
    from mechprobe.cache.harvest.plan import plan_cache

    plan = plan_cache(
        settings.family(trust_remote_code=trust_remote_code), settings.prompt_source(), cache, settings.cache
    )
    chosen = settings.train_sae
    written = f"{min(plan.n_rows, 2 * chosen.kept_rows):,} rows at most are kept in {cache}"
    if chosen.ring_gb is not None:
        written += f", {chosen.ring_gb:g} GB at most pass through the ring"
    return f"Mode {chosen.mode} of {plan}\n{written}; nothing was written."


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
