"""``mechprobe cache``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options

if TYPE_CHECKING:
    from mechprobe.cache.harvest.ranks import Ranks
    from mechprobe.models.family import ModelFamily
    from mechprobe.run_config import RunConfig

Sites = Annotated[str | None, typer.Option("--sites", help="resid_post.2, or several with commas.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="On disk: float32 (default), float16, bfloat16, or in 8 bits int8 or e4m3."),
]
Reader = Annotated[
    str | None,
    typer.Option("--reader", help="How a model is read: auto (default), plain or bridge; it changes no byte."),
]
Part = Annotated[
    str | None, typer.Option("--part", metavar="I/N", help="Only this share of the work, for jobs that never meet.")
]


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
    reader: Reader = None,
    device_map: options.DeviceMap = None,
    part: Part = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Residual streams of every model on the same tokens, aligned by hash, resumable, read back at disk speed.

    Under torchrun several processes make one store together.
    """
    from mechprobe.cache.harvest.ranks import local_device, parse_part, ranks_of_environment
    from mechprobe.cli.settings import device_map_setting, load_settings, prompt_settings
    from mechprobe.errors import ConfigError

    if part is not None and force:
        raise ConfigError("--force empties the store for every part; run it once without --part, or remove the folder.")
    share = None if part is None else parse_part(part)
    extra: dict[str, Any] = (
        prompt_settings(prompts, format_, split, field)
        | cache_settings(
            sites,
            dtype=dtype,
            reader=reader,
            chat_template=chat_template,
            system_prompt=system_prompt,
            truncate=truncate,
            pack=pack,
            max_length=max_length,
            max_prompts=max_prompts,
        )
        | device_map_setting(device_map)
    )
    with ranks_of_environment() as ranks:
        with ranks.agreeing():
            settings = load_settings(config, set_, models=models, seed=seed, device=device, extra=extra)
            settings = settings.replace(device=local_device(settings.device))
            family = settings.family(trust_remote_code=trust_remote_code)
        if dry_run:
            if ranks.is_first:
                _say_plan(family, settings, out, as_json=as_json)
        elif share is not None:
            _cache_part(family, settings, out, share, as_json=as_json)
        else:
            _cache(family, settings, out, ranks, force=force, as_json=as_json)


def _cache(
    family: "ModelFamily", settings: "RunConfig", out: Path, ranks: "Ranks", *, force: bool, as_json: bool
) -> None:
    from mechprobe.cache.stage import cache_activations
    from mechprobe.cli.printing import say, say_json

    store = cache_activations(
        family, settings.prompt_source(), out=out, config=settings.cache, force=force, ranks=ranks
    )
    if not ranks.is_first:
        return
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


def _cache_part(family: "ModelFamily", settings: "RunConfig", out: Path, share: "Ranks", *, as_json: bool) -> None:
    from dataclasses import asdict

    from mechprobe.cache.harvest.parts import cache_part
    from mechprobe.cli.printing import say, say_json

    done = cache_part(family, settings.prompt_source(), out=out, config=settings.cache, part=share)
    if as_json:
        say_json({"folder": str(out), "part": f"{share.index}/{share.count}", **asdict(done)})
        return
    say(f"part      {share.index}/{share.count}: {done.n_made} shards written, {done.n_found} were there")
    say(done.next_step)


def _say_plan(family: "ModelFamily", settings: "RunConfig", out: Path, *, as_json: bool) -> None:
    """Rows, bytes and time; exit code 2 where the store would not fit."""
    from dataclasses import asdict

    from mechprobe.cache.harvest.estimate import estimate_time
    from mechprobe.cache.harvest.plan import plan_of
    from mechprobe.cache.harvest.preparation import prepare
    from mechprobe.cli.printing import say, say_json
    from mechprobe.data.sources import as_prompts

    reading = prepare(family, as_prompts(settings.prompt_source()), settings.cache)
    plan = plan_of(family, reading, out)
    if not as_json:
        say(str(plan))
    plan.require_space()
    estimate = estimate_time(family, reading)
    if as_json:
        say_json({**asdict(plan), "n_bytes": plan.n_bytes(), "time": asdict(estimate)})
        return
    say(f"{estimate}\nNothing was written.")
