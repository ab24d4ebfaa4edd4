"""The stage ``train-sae``: train a crosscoder on a store and measure it on the held-out rows."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechprobe.cache.store.row_source import RowSource
from mechprobe.cache.store.sites import SiteBatches
from mechprobe.dictionary.result import TrainingMetrics
from mechprobe.errors import StoreError
from mechprobe.progress import Advance, progress
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig, Metrics, TrainConfig, TrainResult, evaluate, train

METRICS = "metrics.json"
_EVALUATION_ROWS = 4096


class DeviceBatches:
    """Batches of a store, moved to the device of the crosscoder; the position is that of the store's batches."""

    def __init__(self, batches: SiteBatches, device: str) -> None:
        self.batches = batches
        self.device = device

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch.to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The position of the store's batches."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a position."""
        self.batches.load_state_dict(state)


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
    """Train a crosscoder on the training rows of a store. An interrupted training resumes from its last checkpoint.

    Args:
        store: Activations, an `ActivationStore` or a `LiveActivations`, of the crosscoder's models in the same order.
        config: Shape and variant; `TrainSaeConfig.resolve` derives it from a store.
        train_config: The training schedule.
        out: Stage folder: ``config.json``, ``weights.safetensors``, ``metrics.jsonl`` (during training), ``metrics.json``
            (`TrainingMetrics`, on held-out rows), ``manifest.json``.
        site: The site to read; the store's only site when None. Not allowed beside ``config.sites``.
        device: torch device to train on.
        pool_rows: Rows that are shuffled together in memory.
        force: Discard what the folder holds and train again.

    Returns:
        The trained crosscoder, with the scale of the store.

    Raises:
        StoreError: Store and configuration name different models, or ``site`` is given beside ``config.sites``.
        ArtifactError: The folder holds other work.
        SaeTrainingError: The loss is not finite; the last checkpoint is kept.
    """
    sites, out = _sites(store, config, site), Path(out)
    _check_models(store, config)
    settings = {
        "crosscoder": config.model_dump(mode="json"),
        "training": train_config.model_dump(mode="json"),
        **_site_fields(sites),
        "pool_rows": pool_rows,
        **store.serving_settings(),
    }
    with Stage.open(
        out, name="train-sae", config=settings, inputs={"cache": store.folder}, models=store.fingerprints, force=force
    ) as stage:
        if stage.done:
            return Crosscoder.load(out, device=device)
        batches = SiteBatches(store, sites, train_config.batch_size, train_config.seed, pool_rows=pool_rows)
        crosscoder = Crosscoder(config).to(device)
        crosscoder.set_scale(torch.stack([store.scale(each) for each in sites], dim=1).flatten().to(device))
        with batches, progress(train_config.n_tokens, "training", unit="tokens") as advance:
            result = train(
                crosscoder, DeviceBatches(batches, device), train_config, out=out, on_log=_ProgressLine(advance, config)
            )
        store.close()
        metrics = _training_metrics(store, crosscoder, sites, result, batches)
        metrics.save(out / METRICS)
        stage.finish(
            outputs=["config.json", "weights.safetensors", METRICS],
            counts=metrics.model_dump(include={"tokens", "distinct_tokens", "held_out_tokens", "steps"}),
            results={**metrics.headline, "device": device, "mode": store.mode},
            seed=train_config.seed,
        )
    return crosscoder


class _ProgressLine:
    """Advances the progress bar at every logged step."""

    def __init__(self, advance: Advance, config: CrosscoderConfig) -> None:
        self.advance = advance
        self.names = config.source_names
        self.tokens = 0

    def __call__(self, metrics: dict[str, Any]) -> None:
        shares = [metrics["fve"][name] for name in self.names]
        self.advance(
            metrics["tokens"] - self.tokens,
            **{
                "tokens/s": f"{metrics['tokens_per_s']:,.0f}",
                "l0": float(metrics["l0"]),
                "fve": " ".join(
                    f"{name} {'-' if share is None else format(share, '.3f')}"
                    for name, share in zip(self.names, shares, strict=True)
                ),
                "dead": f"{metrics['dead_frac']:.1%}",
            },
        )
        self.tokens = metrics["tokens"]


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
    """The sites that the crosscoder reads."""
    if not config.sites:
        return [store.resolve_site(site)]
    if site is not None:
        raise StoreError(
            f"The crosscoder reads the sites {', '.join(config.sites)}, and site {site} is given too; leave out site."
        )
    return [store.resolve_site(each) for each in config.sites]


def _site_fields(sites: Sequence[Site]) -> dict[str, Any]:
    """``site`` for one site, ``sites`` for several."""
    return {"site": str(sites[0])} if len(sites) == 1 else {"sites": [str(site) for site in sites]}


def held_out_metrics(store: RowSource, crosscoder: Crosscoder, site: Site | str | None = None) -> Metrics | None:
    """`sae_training.evaluate` on the held-out rows of a store; None where it has none."""
    if not bool(store.tokens.held_out.any()):
        return None
    sites = _sites(store, crosscoder.config, site)
    batches = SiteBatches(store, sites, _EVALUATION_ROWS, 0, split="held_out", epochs=1)
    return evaluate(crosscoder, (batch.to(crosscoder.device) for batch in batches))


def held_out_fields(metrics: Metrics | None, crosscoder: Crosscoder, sites: Sequence[Site]) -> dict[str, Any]:
    """The fields of `HeldOutMetrics`; NaN where no row was measured."""
    nan = dict.fromkeys(crosscoder.source_names, math.nan)
    return {
        "fve": metrics.fve if metrics else nan,
        "fve_all": metrics.fve_all if metrics else math.nan,
        "fve_per_token": metrics.fve_per_token if metrics else nan,
        "l0": metrics.l0 if metrics else math.nan,
        "dead_frac": metrics.dead_frac if metrics else math.nan,
        "held_out_tokens": metrics.n_tokens if metrics else 0,
        **_site_fields(sites),
    }


def _training_metrics(
    store: RowSource, crosscoder: Crosscoder, sites: Sequence[Site], result: TrainResult, batches: SiteBatches
) -> TrainingMetrics:
    held_out = held_out_metrics(store.kept, crosscoder, sites[0] if len(sites) == 1 else None)
    return TrainingMetrics(
        **held_out_fields(held_out, crosscoder, sites),
        training=result.metrics,
        tokens=result.n_tokens,
        steps=result.n_steps,
        distinct_tokens=min(result.n_tokens, batches.n_rows),
        epochs=result.n_tokens / batches.n_rows,
        scale=dict(zip(crosscoder.source_names, crosscoder.scale.tolist(), strict=True)),
    )
