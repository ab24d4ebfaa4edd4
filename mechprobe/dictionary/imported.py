"""The stage ``import-crosscoder``: a published crosscoder as a folder that the later stages read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.result import HeldOutMetrics
from mechprobe.dictionary.stage import METRICS, held_out_fields, held_out_metrics
from mechprobe.errors import ConfigError, StoreError
from mechprobe.files import sha256_file
from mechprobe.progress import activity, loading
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder
from sae_training.importing import PublishedCrosscoder, read_published

MISSING = "the tokens, models, site and settings that it was trained with are not recorded in the file"


@dataclass(frozen=True)
class ImportedCrosscoder:
    """An imported crosscoder.

    Attributes:
        crosscoder: The dictionary.
        published: The weights and formula as the file has them.
        site: The site that the user named, or the store's; None without either.
        metrics: Measurements on the held-out rows of the store; None without such rows.
    """

    crosscoder: Crosscoder
    published: PublishedCrosscoder
    site: Site | None
    metrics: HeldOutMetrics | None


def store_crosscoder(
    path: Path | str,
    out: Path | str,
    *,
    format: str | None = None,
    names: Sequence[str] | None = None,
    scale: Sequence[float | int] | None = None,
    store: ActivationStore | None = None,
    site: str | None = None,
    force: bool = False,
) -> ImportedCrosscoder:
    """Import a published crosscoder into a stage folder.

    Args:
        path: A weights file, or a folder that contains one.
        out: Stage folder: ``config.json``, ``weights.safetensors``, ``manifest.json`` and, with a store, ``metrics.json``
            (`HeldOutMetrics`).
        format: One of `sae_training.importing.FORMATS`; detected when None.
        names: Names of the models, in the file's order; the store's models when None.
        scale: Divisor of each model's raw activations, for files that do not contain it.
        store: Activations of the same models. Only FVE and L0 on them can show that the file was understood correctly.
        site: The site that the crosscoder reads, ``resid_post.<layer>``, for later stages; the store's only site when None.
        force: Import again.

    Raises:
        SaeTrainingError: The file cannot be read, or its crosscoder cannot be represented exactly.
        ConfigError, StoreError, SiteError: Names, widths or site do not fit the store.
        ArtifactError: The folder holds other work.
    """
    with loading("the published weights"):
        published = read_published(path, format)
    chosen = tuple(names) if names is not None else store.models if store is not None else None
    found = store.resolve_site(site) if store is not None else Site.parse(site) if site is not None else None
    crosscoder = published.to_crosscoder(chosen, scale)
    if store is not None:
        _check_store(store, crosscoder)
    settings = {
        "source": {"file": published.path.name, "sha256": sha256_file(published.path), "format": published.format},
        "crosscoder": crosscoder.config.model_dump(mode="json"),
        "scale": crosscoder.scale.tolist(),
        "site": str(found) if found is not None else None,
        "provenance": MISSING,
    }
    inputs = {"cache": store.folder} if store is not None else {}
    models = store.fingerprints if store is not None else {}
    with Stage.open(out, name="import-crosscoder", config=settings, inputs=inputs, models=models, force=force) as stage:
        with activity("measuring held-out rows"):
            metrics = None if store is None or found is None else _measured(store, crosscoder, found)
        if not stage.done:
            crosscoder.save(stage.folder)
            outputs = ["config.json", "weights.safetensors", *([METRICS] if metrics else [])]
            if metrics is not None:
                metrics.save(stage.folder / METRICS)
            stage.finish(outputs=outputs, results=metrics.headline if metrics else {})
    return ImportedCrosscoder(crosscoder, published, found, metrics)


def _check_store(store: ActivationStore, crosscoder: Crosscoder) -> None:
    if set(crosscoder.model_names) - set(store.models):
        raise ConfigError(
            f"The crosscoder's models are named {', '.join(crosscoder.model_names)}, but the store {store.folder} has "
            f"{', '.join(store.models)}; give --names in the file's order."
        )
    widths = tuple(store.widths[name] for name in crosscoder.model_names)
    if widths != crosscoder.config.widths:
        raise StoreError(
            f"The crosscoder takes widths {crosscoder.config.widths}, but the models of {store.folder} have {widths}; give a "
            "store of the models that the crosscoder was trained on."
        )


def _measured(store: ActivationStore, crosscoder: Crosscoder, site: Site) -> HeldOutMetrics | None:
    opened = ActivationStore.open(store.folder, models=crosscoder.model_names)
    found = held_out_metrics(opened, crosscoder, site)
    return HeldOutMetrics(**held_out_fields(found, crosscoder, [site])) if found else None
