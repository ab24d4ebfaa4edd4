"""``mechprobe crosscoder import``: a published crosscoder as a stage folder that the later stages read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.stage import METRICS, held_out_metrics
from mechprobe.errors import ConfigError, StoreError
from mechprobe.files import sha256_file, write_json
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder
from sae_training.importing import PublishedCrosscoder, read_published

MISSING = "the tokens, models, site and settings that it was trained with are not recorded in the file"


@dataclass(frozen=True)
class ImportedCrosscoder:
    """What the import made.

    Attributes:
        crosscoder: The dictionary.
        published: The formula that was read.
        site: Where the user says it belongs; None where they did not.
        metrics: On the held-out rows of the store; None without a store.
    """

    crosscoder: Crosscoder
    published: PublishedCrosscoder
    site: Site | None
    metrics: dict[str, Any] | None


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
        path: Weights file, or a folder with one.
        out: Stage folder: ``config.json``, ``weights.safetensors``, ``manifest.json`` and, with a store, ``metrics.json``.
        format: One of `sae_training.importing.FORMATS`; recognised when None.
        names: Of the models, in the file's order; the store's models when None.
        scale: Divisor of each model's raw activations, where the file does not hold it.
        store: Activations of the same models, on which FVE and L0 are measured: the only check that the file is what it
            is taken for.
        site: Where the crosscoder reads, ``resid_post.<layer>``; later stages take it from here. The store's only site
            when None.
        force: Import again.

    Raises:
        SaeTrainingError: The file cannot be read or represented exactly.
        ConfigError, StoreError, SiteError: Names, widths or site do not fit the store.
        ArtifactError: The folder holds other work.
    """
    published = read_published(path, format)
    chosen = tuple(names) if names is not None else store.models if store is not None else None
    found = _site(store, site)
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
        metrics = None if store is None else _metrics(store, crosscoder, found)
        if not stage.done:
            crosscoder.save(stage.folder)
            outputs = ["config.json", "weights.safetensors"]
            if metrics is not None:
                write_json(stage.folder / METRICS, metrics)
                outputs.append(METRICS)
            results = {name: metrics[name] for name in ("fve", "l0", "dead_frac")} if metrics else {}
            stage.finish(outputs=outputs, results=results)
    return ImportedCrosscoder(crosscoder, published, found, metrics)


def _site(store: ActivationStore | None, site: str | None) -> Site | None:
    if store is not None:
        return store.resolve_site(site)
    return Site.parse(site) if site is not None else None


def _check_store(store: ActivationStore, crosscoder: Crosscoder) -> None:
    if set(crosscoder.model_names) - set(store.models):
        raise ConfigError(
            f"The crosscoder's models are named {', '.join(crosscoder.model_names)}, the store {store.folder} has "
            f"{', '.join(store.models)}; give --names in the file's order."
        )
    widths = tuple(store.widths[name] for name in crosscoder.model_names)
    if widths != crosscoder.config.widths:
        raise StoreError(
            f"The crosscoder takes widths {crosscoder.config.widths}, the models of {store.folder} have {widths}; "
            "it is of other models."
        )


def _metrics(store: ActivationStore, crosscoder: Crosscoder, site: Site | None) -> dict[str, Any] | None:
    opened = ActivationStore.open(store.folder, models=crosscoder.model_names)
    found = held_out_metrics(opened, crosscoder, site)
    if found is None:
        return None
    values = {name: value for name, value in asdict(found).items() if name not in ("density", "n_tokens", "mse")}
    return {"split": "held_out", **values, "held_out_tokens": found.n_tokens, "site": str(site)}
