"""``mechprobe cache``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Prompts = Annotated[Path | None, typer.Option("--prompts", "-p", help="JSON lines of prompt [, id, response, task].")]
Sites = Annotated[str | None, typer.Option("--sites", help="resid_post.2, or several with commas.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="On disk: float32, float16 or bfloat16.")]


def cache_settings(sites: str | None, dtype: str | None) -> dict[str, object]:
    """The settings that the options of the cache stand for."""
    section: dict[str, object] = {}
    if sites:
        section["sites"] = [site.strip() for site in sites.split(",")]
    if dtype:
        section["dtype"] = dtype
    return {"cache": section} if section else {}


def cache(
    out: Out = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    prompts: Prompts = None,
    sites: Sites = None,
    dtype: Dtype = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Residual streams of every model on the same tokens, aligned by hash, resumable, read back at disk speed."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings

    extra = cache_settings(sites, dtype) | ({"prompts": {"file": str(prompts)}} if prompts is not None else {})
    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=extra)
    family = settings.family(trust_remote_code=trust_remote_code)
    if dry_run:
        from dataclasses import asdict

        from mechprobe.activations.plan import plan_cache

        plan = plan_cache(family, settings.prompts_file(), out, settings.cache)
        if as_json:
            say_json({**asdict(plan), "n_bytes": plan.n_bytes()})
            return
        say(f"{plan}\nNothing was written.")
        return

    from mechprobe.activations import cache_activations

    store = cache_activations(family, settings.prompts_file(), out=out, config=settings.cache, force=force)
    counts = store.manifest["counts"]
    if as_json:
        say_json({"folder": str(out), "counts": counts, "models": store.fingerprints, "stream": store.stream_hash})
        return
    widths = ", ".join(f"{name} {width}" for name, width in store.widths.items())
    say(f"rows      {counts['rows']:,} ({counts['response_rows']:,} response, {counts['held_out_rows']:,} held out)")
    say(f"models    {widths}")
    say(f"sites     {', '.join(str(site) for site in store.sites)} ({store.dtype})")
    say(f"size      {counts['bytes'] / 1e6:,.1f} MB in {counts['shards']} shards a model")
    say(f"stream    {store.stream_hash[:16]}")
    say(f"\nWritten to {out}\nNext: mechprobe train-sae --cache {out}")
