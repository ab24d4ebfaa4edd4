"""``mechprobe train-sae``: a crosscoder trained on a store, and how well it does on the prompts held out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.sites import SiteBatches
from mechprobe.cache.store.source import RowSource
from mechprobe.errors import StoreError
from mechprobe.files import write_json
from mechprobe.progress import Advance, progress
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig, Metrics, TrainConfig, TrainResult, evaluate, train

METRICS = "metrics.json"
_EVALUATION_ROWS = 4096


class DeviceBatches:
    """Batches of a store on the device of the crosscoder, with the store's position."""

    def __init__(self, batches: SiteBatches, device: str) -> None:
        self.batches = batches
        self.device = device

    def __iter__(self) -> Any:
        for batch in self.batches:
            yield batch.to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Position of the store's batches."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go to a position."""
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
    """Train a crosscoder on the training rows of a store; an interrupted training goes on where it was.

    Args:
        store: Activations, an `ActivationStore` or a `LiveActivations`; its models are the crosscoder's, in the same
            order.
        config: Shape and kind; `mechprobe.cache.TrainSaeConfig.resolve` makes it from a store.
        train_config: How to train.
        out: Stage folder: ``config.json``, ``weights.safetensors``, ``metrics.jsonl`` (training), ``metrics.json``
            (held-out prompts: fve, fve_all, l0 and dead_frac), ``manifest.json``.
        site: Where; the store's only site when None. Not with ``config.sites``, which names several.
        device: torch device to train on.
        pool_rows: Rows mixed with each other in memory.
        force: Train again from the beginning.

    Returns:
        The trained crosscoder, its scale set from the store.

    Raises:
        StoreError: Store and configuration are of other models, or ``site`` is given beside ``config.sites``.
        ArtifactError: The folder holds other work.
        SaeTrainingError: The loss is not finite; the last checkpoint is kept.
    """
    sites, out = _sites(store, config, site), Path(out)
    _check_models(store, config)
    settings = {
        "crosscoder": config.model_dump(mode="json"),
        "training": train_config.model_dump(mode="json"),
        **_named(sites),
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
                crosscoder, DeviceBatches(batches, device), train_config, out=out, on_log=_Shown(advance, config)
            )
        store.close()
        metrics = _metrics(store, crosscoder, sites, result, batches)
        write_json(out / METRICS, metrics)
        stage.finish(
            outputs=["config.json", "weights.safetensors", METRICS],
            counts={name: metrics[name] for name in ("tokens", "distinct_tokens", "held_out_tokens", "steps")},
            results={
                "fve": metrics["fve"],
                "l0": metrics["l0"],
                "dead_frac": metrics["dead_frac"],
                "device": device,
                "mode": store.mode,
            },
            seed=train_config.seed,
        )
    return crosscoder


class _Shown:
    """Moves the progress bar on at every logged step."""

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
            f"The crosscoder is of {', '.join(config.model_names)}, the store {store.folder} of "
            f"{', '.join(store.models)}; give the same models in the same order."
        )
    widths = tuple(width for width in store.widths.values() for _ in range(config.n_sites))
    if config.widths != widths:
        raise StoreError(
            f"The crosscoder takes widths {config.widths}, the store has {widths}; "
            "make them equal in the configuration."
        )


def _sites(store: RowSource, config: CrosscoderConfig, site: Site | str | None) -> list[Site]:
    """The sites that the dictionary reads."""
    if not config.sites:
        return [store.resolve_site(site)]
    if site is not None:
        raise StoreError(
            f"The crosscoder is of the sites {', '.join(config.sites)} and site {site} is given too; leave site out."
        )
    return [store.resolve_site(each) for each in config.sites]


def _named(sites: Sequence[Site]) -> dict[str, Any]:
    """``site`` for one, ``sites`` for several."""
    return {"site": str(sites[0])} if len(sites) == 1 else {"sites": [str(site) for site in sites]}


def held_out_metrics(store: ActivationStore, crosscoder: Crosscoder, site: Site | str | None = None) -> Metrics | None:
    """`sae_training.evaluate` on the held-out rows; None where the store has none."""
    if not bool(store.tokens.held_out.any()):
        return None
    sites = _sites(store, crosscoder.config, site)
    batches = SiteBatches(store, sites, _EVALUATION_ROWS, 0, split="held_out", epochs=1)
    return evaluate(crosscoder, (_to(batch, crosscoder) for batch in batches))


def _to(batch: Tensor, crosscoder: Crosscoder) -> Tensor:
    return batch.to(crosscoder.device)


def _metrics(
    store: RowSource, crosscoder: Crosscoder, sites: Sequence[Site], result: TrainResult, batches: SiteBatches
) -> dict[str, Any]:
    """What stands in ``metrics.json``; per source where the dictionary reads several sites."""
    held_out = held_out_metrics(store.kept, crosscoder, sites[0] if len(sites) == 1 else None)
    names = crosscoder.source_names
    nan = dict.fromkeys(names, math.nan)
    return {
        "split": "held_out",
        "fve": held_out.fve if held_out else nan,
        "fve_all": held_out.fve_all if held_out else math.nan,
        "fve_per_token": held_out.fve_per_token if held_out else nan,
        "l0": held_out.l0 if held_out else math.nan,
        "dead_frac": held_out.dead_frac if held_out else math.nan,
        "held_out_tokens": held_out.n_tokens if held_out else 0,
        "training": result.metrics,
        "tokens": result.n_tokens,
        "steps": result.n_steps,
        "distinct_tokens": min(result.n_tokens, batches.n_rows),
        "epochs": result.n_tokens / batches.n_rows,
        "scale": dict(zip(names, crosscoder.scale.tolist(), strict=True)),
        **_named(sites),
    }
