"""``mechprobe train-sae``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.cache import Sites, cache_settings
from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.pipeline.run import Run

Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Activation store, instead of the run's. Modes stream and ring keep a subset there."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
Mode = Annotated[str | None, typer.Option("--mode", help="cache, stream (no disk) or ring (bounded disk).")]
RingGb = Annotated[float | None, typer.Option("--ring-gb", help="Largest size of the ring on disk, in GB.")]
Preset = Annotated[str | None, typer.Option("--preset", help="default, or paper (arXiv 2604.25011: ReLU with L1).")]


@takes_shared_options
def train_sae(
    shared: Shared,
    out: Out = None,
    cache: Cache = None,
    mode: Mode = None,
    ring_gb: RingGb = None,
    prompts: options.Prompts = None,
    sites: Sites = None,
    preset: Preset = None,
) -> None:
    """Train one crosscoder over all models, and measure it on held-out prompts."""
    from mechprobe.cli.options import prompt_settings
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, in_run, say_result
    from mechprobe.cli.stage_lines import training_lines
    from mechprobe.dictionary.result import TrainingMetrics
    from mechprobe.dictionary.stage import METRICS, require_whole_store
    from mechprobe.pipeline.plans import plan_train_sae

    given = {"preset": preset, "mode": mode, "ring_gb": ring_gb}
    section = {name: value for name, value in given.items() if value is not None}
    extra: dict[str, Any] = cache_settings(sites) | prompt_settings(prompts)
    if section:
        extra["train_sae"] = section
    own_inputs = cache is not None or prompts is not None
    run = shared.start(extra, own_inputs=own_inputs, cache=cache, crosscoder=out)
    require_whole_store(run.config.train_sae.mode)
    _choose_sites(run, given=sites is not None)
    folder = run.layout.crosscoder
    crosscoder = carry_out(
        shared, run, "train-sae", folder=folder, plan=lambda: plan_train_sae(run), work=lambda: _trained(run)
    )
    if crosscoder is None:
        return
    metrics = TrainingMetrics.load(folder / METRICS)
    if shared.as_json:
        say_json({"folder": str(folder), **metrics.to_dict()})
        return
    shape = crosscoder.config
    inside = folder.absolute().parent == run.folder.absolute()
    then = in_run(run) + ("" if inside else f" --crosscoder {folder} --cache {run.layout.cache}")
    say_result(training_lines(metrics, shape.d_sae, shape.source_names), folder, f"mechprobe features{then}", run=run)


def _choose_sites(run: "Run", *, given: bool) -> None:
    """Train at ``--sites``. Modes that run the models refuse several sites before anything is written."""
    chosen, sites = run.config.train_sae, run.config.cache.sites
    if given or (chosen.mode != "cache" and sites and chosen.site is None):
        one = len(sites) == 1
        chosen = chosen.replace(site=sites[0] if one else None, sites=() if one else sites)
        run.config = run.config.model_copy(update={"train_sae": chosen})


def _trained(run: "Run") -> Any:
    """Train; in the modes that run the models, make the kept subset of the store first."""
    if run.config.train_sae.mode != "cache":
        _require_no_whole_store(run.layout.cache, run.config.train_sae.mode)
        run.cache()
    return run.train_sae()


def _require_no_whole_store(cache: Path, mode: str) -> None:
    """``--force`` makes the training again; it must not replace a whole store by the subset that is kept."""
    from mechprobe.errors import ArtifactError
    from mechprobe.stage_folder import MANIFEST, read_manifest

    if not (cache / MANIFEST).is_file():
        return
    manifest = read_manifest(cache)
    if manifest["stage"] == "cache" and not manifest["config"].get("kept"):
        raise ArtifactError(
            f"{cache} is a whole store; train with mode 'cache', or give mode '{mode}' another --cache."
        )
