"""The stage ``train-sae``: train a crosscoder on a store and measure it on the held-out rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mechprobe.cache.store.row_source import RowSource, SiteBatches
from mechprobe.dictionary.result import TrainingMetrics
from mechprobe.errors import ConfigError, StoreError
from mechprobe.memory import needing_memory
from mechprobe.progress import Meter, activity, progress
from mechprobe.ranks import sharing
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig, Metrics, TrainConfig, TrainResult, evaluate, train
from sae_training.parallel import ALONE, Division

METRICS = "metrics.json"
_EVALUATION_ROWS = 4096
_SMALLER = "lower train_sae.pool_rows, batch_size or d_sae, or free memory, and run the same command again"


def train_crosscoder(
    store: RowSource,
    config: CrosscoderConfig,
    train_config: TrainConfig,
    out: Path | str,
    *,
    site: Site | str | None = None,
    device: str = "cpu",
    pool_rows: int = 65536,
    force: bool = False,
) -> Crosscoder:
    """Train a crosscoder on the training rows of a store, with the store's scale, or a dictionary of a difference.

    An interrupted training resumes from its last checkpoint. Several processes divide the training (``train_config.divide``);
    where they divide the latents, each returns the part of the crosscoder that it trained. The crosscoder records which positions the store drops
    (``drop_first_positions`` and ``norm_limits`` of its configuration), whatever ``config`` says of them.

    Args:
        store: Activations, an `ActivationStore` or a `LiveActivations`, of the crosscoder's models in the same order.
        config: Shape and variant; `TrainSaeConfig.resolve` derives it and ``train_config`` from a store.
        train_config: The training schedule.
        out: Stage folder: ``config.json``, ``weights.safetensors``, ``metrics.jsonl`` (during training), ``metrics.json``
            (`TrainingMetrics`, on held-out rows), ``manifest.json``.
        site: The site to read; the store's only site when None. Not allowed beside ``config.sites``.
        device: torch device to train on.
        pool_rows: Rows that are shuffled together in memory.
        force: Discard what the folder holds and train again.

    Raises:
        StoreError: Store and configuration name different models, or ``site`` is given beside ``config.sites``.
        ArtifactError: The folder holds other work.
        SaeTrainingError: The loss is not finite; the last checkpoint is kept.
    """
    sites, out = _sites(store, config, site), Path(out)
    _check_models(store, config)
    config = config.replace(**store.kept.token_rule(sites))
    settings = {"crosscoder": config.model_dump(mode="json"), "training": train_config.model_dump(mode="json")}
    settings |= {**_site_fields(sites), "pool_rows": pool_rows, **store.serving_settings()}
    inputs, models = {"cache": store.folder}, store.fingerprints
    division = _division(store, train_config, device)
    rows = division.latents(config.d_sae)
    work = {"name": "train-sae", "config": settings, "inputs": inputs, "models": models}
    with Stage.open(out, **work, force=force, one_folder=True) as stage:
        if stage.done:
            return Crosscoder.load(out, device=device, division=division)
        batches = SiteBatches(
            store, sites, train_config.batch_size, train_config.seed, pool_rows=pool_rows, device=device
        )
        crosscoder = Crosscoder(config, rows).to(device)
        if config.reads == "activations":  # the scale of a difference is measured on the first batches
            crosscoder.set_scale(torch.stack([store.scale(each) for each in sites], dim=1).flatten().to(device))
        progressing = progress(train_config.trained_tokens, "training", unit="tokens")
        with needing_memory("Training", _SMALLER), batches, progressing as advance:
            line = ProgressLine(advance, config)
            result = train(
                crosscoder, batches, train_config, out=out, on_log=line, on_step=line.count, division=division
            )
        store.close()
        with activity("measuring held-out rows"):
            metrics = _training_metrics(store, crosscoder, sites, (result, batches.n_rows), division)
        if division.is_first:
            metrics.save(out / METRICS)
            stage.finish(
                outputs=["config.json", "weights.safetensors", METRICS],
                counts=metrics.model_dump(include={"tokens", "distinct_tokens", "held_out_tokens", "steps"}),
                results={**metrics.headline, "device": device, "mode": store.mode},
                seed=train_config.seed,
            )
    return crosscoder


def _division(store: RowSource, train_config: TrainConfig, device: str) -> Division:
    """How the processes of this command divide the training.

    Raises:
        ConfigError: The models run during training, which one process does.
    """
    ranks = sharing()
    if ranks.count == 1:
        return Division()
    require_whole_store(store.mode)
    return Division(ranks, train_config.divide, ranks.tensor_group(device))


def require_whole_store(mode: str) -> None:
    """Raise `ConfigError` where several processes would run the models during training."""
    if mode != "cache" and sharing().count > 1:
        raise ConfigError(
            f"Mode '{mode}' runs the models in one process; under torchrun make a store with `mechprobe cache`, and train "
            "with mode 'cache'."
        )


class ProgressLine:
    """Counts the tokens of a training, and shows the metrics that it logs."""

    def __init__(self, advance: Meter, config: CrosscoderConfig) -> None:
        self.advance, self.names = advance, config.source_names
        self.tokens: int | None = None
        self.fields: dict[str, Any] = {}

    def count(self, tokens: int) -> None:
        """Count up to ``tokens``; those of the first call were trained on before."""
        if self.tokens is None:
            self.advance.found(tokens)
        else:
            self.advance(tokens - self.tokens, **self.fields)
        self.tokens = tokens

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Show metrics from the next step on."""
        shares = {name: metrics["fve"][name] for name in self.names}
        fve = (f"{name} {'-' if share is None else format(share, '.3f')}" for name, share in shares.items())
        self.fields = {
            "l0": float(metrics["l0"]), "fve": " ".join(fve), "dead": f"{metrics['dead_frac']:.1%}",
        }  # fmt: skip


def _check_models(store: RowSource, config: CrosscoderConfig) -> None:
    if config.model_names != store.models:
        raise StoreError(
            f"The crosscoder has the models {', '.join(config.model_names)}, but the store {store.folder} has "
            f"{', '.join(store.models)}; give the same models in the same order."
        )
    widths = tuple(width for width in store.widths.values() for _ in range(config.n_sites))
    if config.widths != widths:
        raise StoreError(
            f"The crosscoder takes widths {config.widths}, but the store has {widths}; set the store's widths in d_model."
        )


def _sites(store: RowSource, config: CrosscoderConfig, site: Site | str | None) -> list[Site]:
    if not config.sites:
        return [store.resolve_site(site)]
    if site is not None:
        raise StoreError(f"The crosscoder reads the sites {', '.join(config.sites)}; leave out site {site}.")
    return [store.resolve_site(each) for each in config.sites]


def _site_fields(sites: Sequence[Site]) -> dict[str, Any]:
    """``site`` for one site, ``sites`` for several."""
    return {"site": str(sites[0])} if len(sites) == 1 else {"sites": [str(site) for site in sites]}


def held_out_metrics(
    store: RowSource, crosscoder: Crosscoder, site: Site | str | None = None, division: Division = ALONE
) -> Metrics | None:
    """`sae_training.evaluate` on the held-out rows of a store; None where it has none."""
    if not bool(store.in_split("held_out").any()):
        return None
    sites = _sites(store, crosscoder.config, site)
    batches = SiteBatches(store, sites, _EVALUATION_ROWS, 0, split="held_out", epochs=1, device=crosscoder.device)
    with division.agreeing():
        return evaluate(crosscoder, batches, far_norms=store.far_norms(sites), division=division)


def held_out_fields(metrics: Metrics | None, crosscoder: Crosscoder, sites: Sequence[Site]) -> dict[str, Any]:
    """The fields of `HeldOutMetrics`; NaN where no row was measured."""
    nan = dict.fromkeys(crosscoder.source_names, math.nan)
    found = metrics or Metrics(nan, math.nan, nan, nan, math.nan, math.nan, torch.zeros(crosscoder.d_sae), 0)
    fields = {name: getattr(found, name) for name in ("fve", "fve_all", "fve_per_token", "l0", "dead_frac")}
    far = {} if found.fve_ordinary is None else {"fve_ordinary": found.fve_ordinary, "far_tokens": found.n_far}
    return {**fields, **far, "held_out_tokens": found.n_tokens, **_site_fields(sites)}


def _training_metrics(
    store: RowSource,
    crosscoder: Crosscoder,
    sites: Sequence[Site],
    trained: tuple[TrainResult, int],
    division: Division,
) -> TrainingMetrics:
    """Metrics of a result and of the number of training rows."""
    result, n_rows = trained
    held_out = held_out_metrics(store.kept, crosscoder, sites[0] if len(sites) == 1 else None, division)
    return TrainingMetrics(
        **held_out_fields(held_out, crosscoder, sites),
        training=result.metrics,
        tokens=result.n_tokens,
        steps=result.n_steps,
        distinct_tokens=min(result.n_tokens, n_rows),
        epochs=result.n_tokens / n_rows,
        scale=dict(zip(crosscoder.source_names, crosscoder.scale.tolist(), strict=True)),
    )
