"""``mechprobe cache``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.pipeline.run import Run
    from mechprobe.ranks import Ranks

Sites = Annotated[str | None, typer.Option("--sites", help="resid_post.2, or several with commas.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Numbers on disk: float32 (default), float16, bfloat16, or int8 or e4m3 in 8 bits."),
]
Reader = Annotated[
    str | None,
    typer.Option("--reader", help="How a model is run: auto (default), plain or bridge. The bytes are the same."),
]
Part = Annotated[
    str | None, typer.Option("--part", metavar="I/N", help="Only this share of the work, for independent jobs.")
]


def cache_settings(sites: str | None, **settings: object) -> dict[str, Any]:
    """The section ``cache`` that the options of the command give, and the section ``text`` of those that concern the template."""
    text = {name: settings.pop(name, None) for name in ("chat_template", "system_prompt")}
    text = {name: value for name, value in text.items() if value is not None}
    section = {key: value for key, value in settings.items() if value is not None}
    if sites:
        section["sites"] = [site.strip() for site in sites.split(",")]
    return ({"cache": section} if section else {}) | ({"text": text} if text else {})


@takes_shared_options
def cache(
    shared: Shared,
    out: Out = None,
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
) -> None:
    """Record the residual streams of every model on the same tokens, in a store that later stages read.

    Under torchrun several processes make one store together.
    """
    from mechprobe.cli.options import device_map_setting, prompt_settings
    from mechprobe.errors import ConfigError

    if part is not None and shared.force:
        raise ConfigError("--force empties the store for every part; run it once without --part, or remove the folder.")
    share = None if part is None else _share(part)
    extra = prompt_settings(prompts, format_, split, field) | device_map_setting(device_map)
    extra |= cache_settings(
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
    _on_every_rank(shared, extra, out, share, own_inputs=prompts is not None)


def _on_every_rank(
    shared: Shared, extra: dict[str, Any], out: Path | None, share: "Ranks | None", *, own_inputs: bool
) -> None:
    """Plan on the first process; make the store on all of them."""
    from mechprobe.cli.stage_command import carry_out
    from mechprobe.pipeline.plans import plan_cache_stage
    from mechprobe.pipeline.upstream import refuse_missing
    from mechprobe.ranks import processes

    ranks = processes()
    with ranks.agreeing():
        run = shared.start(extra, own_inputs=own_inputs, cache=out)
        _ = run.family
    if shared.dry_run and not ranks.is_first:
        return
    if ranks.count > 1:  # otherwise every process would make the same stage
        refuse_missing(run, "cache")
    work = (lambda: run.cache(ranks)) if share is None else lambda: _made_part(run, share)
    store = carry_out(shared, run, "cache", folder=run.layout.cache, plan=lambda: plan_cache_stage(run), work=work)
    if store is not None:
        _say_store(shared, run, store) if share is None else _say_part(shared, run, share, store)


def _say_store(shared: Shared, run: "Run", store: "ActivationStore") -> None:
    from mechprobe.cache.result import CacheCounts, far_sentence
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import in_run, say_result
    from mechprobe.cli.stage_lines import store_lines

    folder = run.layout.cache
    if shared.as_json:
        counts = CacheCounts.of(store).to_json()
        norms = None if store.norms is None else store.norms.to_dict()
        about = {"folder": str(folder), "counts": counts, "norms": norms, "far_rows": far_sentence(store)}
        say_json({**about, "models": store.fingerprints, "stream": store.stream_hash})
        return
    inside = folder.absolute().parent == run.folder.absolute()
    then = f"mechprobe train-sae{in_run(run)}{'' if inside else f' --cache {folder}'}"
    say_result(store_lines(store), folder, then, run=run)


def _share(part: str) -> "Ranks":
    from mechprobe.cache.harvest.parts import parse_part

    return parse_part(part)


def _made_part(run: "Run", share: "Ranks") -> Any:
    from mechprobe.cache.harvest.parts import cache_part

    config = run.config.cache.replace(sites=run.sites())
    return cache_part(run.family, run.config.prompt_source(), out=run.layout.cache, config=config, part=share)


def _say_part(shared: Shared, run: "Run", share: "Ranks", done: Any) -> None:
    from dataclasses import asdict

    from mechprobe.cli.printing import say, say_json

    if shared.as_json:
        say_json({"folder": str(run.layout.cache), "part": f"{share.index}/{share.count}", **asdict(done)})
        return
    say(f"part      {share.index}/{share.count}: {done.n_made} shards written, {done.n_found} found")
    say(done.next_step)
