"""``mechprobe cache``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Sites = Annotated[str | None, typer.Option("--sites", help="resid_post.2, or several with commas.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="On disk: float32, float16 or bfloat16.")]


def cache_settings(sites: str | None, **options: object) -> dict[str, object]:
    """The section ``cache`` that the options of the cache stand for."""
    section = {key: value for key, value in options.items() if value is not None}
    if sites:
        section["sites"] = [site.strip() for site in sites.split(",")]
    return {"cache": section} if section else {}


def cache(
    out: Out = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    prompts: options.Prompts = None,
    format_: options.Format = None,
    split: options.Split = None,
    field: options.Field = None,
    sites: Sites = None,
    dtype: Dtype = None,
    chat_template: options.ChatTemplate = None,
    system_prompt: options.SystemPrompt = None,
    truncate: options.Truncate = None,
    pack: options.Pack = None,
    max_length: options.MaxLength = None,
    max_prompts: options.MaxPrompts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Residual streams of every model on the same tokens, aligned by hash, resumable, read back at disk speed."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings, prompt_settings

    extra = prompt_settings(prompts, format_, split, field) | cache_settings(
        sites,
        dtype=dtype,
        chat_template=chat_template,
        system_prompt=system_prompt,
        truncate=truncate,
        pack=pack,
        max_length=max_length,
        max_prompts=max_prompts,
    )
    settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=extra)
    family = settings.family(trust_remote_code=trust_remote_code)
    if dry_run:
        from dataclasses import asdict

        from mechprobe.activations.plan import plan_cache

        plan = plan_cache(family, settings.prompt_source(), out, settings.cache)
        if as_json:
            say_json({**asdict(plan), "n_bytes": plan.n_bytes()})
            return
        say(f"{plan}\nNothing was written.")
        return

    from mechprobe.activations import cache_activations

    store = cache_activations(family, settings.prompt_source(), out=out, config=settings.cache, force=force)
    counts = store.manifest["counts"]
    if as_json:
        say_json({"folder": str(out), "counts": counts, "models": store.fingerprints, "stream": store.stream_hash})
        return
    widths = ", ".join(f"{name} {width}" for name, width in store.widths.items())
    say(f"rows      {counts['rows']:,} ({counts['response_rows']:,} response, {counts['held_out_rows']:,} held out)")
    if counts["sequences_cut"] or counts["prompts_dropped"]:
        say(f"too long  {counts['sequences_cut']:,} sequences cut, {counts['prompts_dropped']:,} prompts dropped")
    say(f"models    {widths}")
    say(f"sites     {', '.join(str(site) for site in store.sites)} ({store.dtype})")
    say(f"size      {counts['bytes'] / 1e6:,.1f} MB in {counts['shards']} shards a model")
    say(f"stream    {store.stream_hash[:16]}")
    say(f"\nWritten to {out}\nNext: mechprobe train-sae --cache {out}")
