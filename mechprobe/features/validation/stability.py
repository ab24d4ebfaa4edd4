"""Which features another seed finds again: dictionaries trained alike but for the seed, matched by their decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.errors import ConfigError
from mechprobe.features.config import FeaturesConfig, NullsConfig
from mechprobe.features.stage import resolve_config
from mechprobe.features.table.classes import DEAD
from mechprobe.features.table.feature_table import FeatureTable, feature_table
from mechprobe.features.validation.matching import Matching
from mechprobe.features.validation.nulls import match_dictionaries
from mechprobe.features.validation.retrain import Recipe
from mechprobe.files import read_json, write_bytes, write_json
from mechprobe.stage_folder import Stage
from mechprobe.statistics import bootstrap_mean, wilson_interval
from sae_training import Crosscoder

STABILITY_FILE = "stability.json"
FOUND_FILE = "found_again.parquet"


@dataclass(frozen=True)
class Stability:
    """What other seeds find again.

    Attributes:
        folder: The stage folder.
        value: The content of ``stability.json``.
    """

    folder: Path
    value: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> "Stability":
        """Read a finished measurement."""
        return cls(Path(folder), read_json(Path(folder) / STABILITY_FILE))

    @property
    def sentence(self) -> str:
        """The result in words."""
        return str(self.value["sentence"])

    def found_again(self) -> pd.DataFrame:
        """One row per latent of the run's crosscoder: how many seeds find it, mean cosine, how many give it its class."""
        return pd.read_parquet(self.folder / FOUND_FILE)


def measure_stability(
    n_seeds: int,
    *,
    crosscoder: Path | str,
    cache: Path | str,
    out: Path | str,
    config: FeaturesConfig | None = None,
    nulls: NullsConfig | None = None,
    device: str = "cpu",
    force: bool = False,
) -> Stability:
    """Train the run's crosscoder again with other seeds and match every dictionary to it.

    Args:
        n_seeds: Dictionaries to train, with the seeds after that of the crosscoder.
        crosscoder: Folder of the run's crosscoder, written by ``mechprobe train-sae``.
        cache: Folder of the activation store.
        out: Stage folder: ``stability.json``, ``found_again.parquet`` and ``seed_<n>/``, each a folder as ``train-sae`` writes it.
        config: Settings of the feature tables.
        nulls: Length of training and cosine; see `NullsConfig`.
        device: Where dictionaries are trained and read.
        force: Make a finished folder again.

    Returns:
        The result, read back where the stage was already done.

    Raises:
        ConfigError: ``n_seeds`` is below 1.
        ArtifactError: The crosscoder does not say how it was trained, or ``out`` holds other work.
    """
    if n_seeds < 1:
        raise ConfigError(f"--seeds is {n_seeds}; give at least 1 further seed.")
    nulls, out, recipe = nulls or NullsConfig(), Path(out), Recipe.of(crosscoder)
    store = ActivationStore.open(cache, models=recipe.shape.model_names)
    config = resolve_config(config or FeaturesConfig(), crosscoder, store)
    settings = {
        "n_seeds": n_seeds,
        "nulls": nulls.model_dump(mode="json"),
        "features": config.model_dump(mode="json"),
    }
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache}
    with Stage.open(
        out, name="stability", config=settings, inputs=inputs, models=store.fingerprints, force=force
    ) as stage:
        if not stage.done:
            own = Crosscoder.load(crosscoder, device)
            reference = (own, feature_table(own, store, config))
            others: dict[int, tuple[Crosscoder, FeatureTable]] = {}
            for number in range(1, n_seeds + 1):
                again = recipe.again(number, nulls)
                found = train_crosscoder(
                    store,
                    again.shape,
                    again.schedule,
                    out / f"seed_{number}",
                    site=again.site,
                    device=device,
                    pool_rows=again.pool_rows,
                )
                others[again.schedule.seed] = (found, feature_table(found, store, config))
            _write(stage, reference, others, nulls)
    return Stability.load(out)


def _write(
    stage: Stage,
    reference: tuple[Crosscoder, FeatureTable],
    others: Mapping[int, tuple[Crosscoder, FeatureTable]],
    nulls: NullsConfig,
) -> None:
    matchings = {seed: match_dictionaries(reference, other, nulls.min_cosine) for seed, other in others.items()}
    tables = [table for _, table in others.values()]
    frame = found_again(reference[1], tables, list(matchings.values()))
    write_bytes(stage.folder / FOUND_FILE, frame.to_parquet(index=False))
    value = summarize(reference[1], tables, list(matchings.values()), seed=nulls.seed)
    value |= {"seeds": list(others), "min_cosine": nulls.min_cosine}
    write_json(stage.folder / STABILITY_FILE, value)
    stage.finish(
        outputs=[STABILITY_FILE, FOUND_FILE],
        counts={"dictionaries": len(others), "features": len(reference[1])},
        results={"sentence": value["sentence"], "found_share": value["classes"]["all"]["found_share"]},
        seed=nulls.seed,
    )


def found_again(reference: FeatureTable, tables: Sequence[FeatureTable], matchings: Sequence[Matching]) -> pd.DataFrame:
    """Per latent of the reference: its class, seeds that find it, mean cosine of its partners, seeds that give it its class."""
    found = np.stack([matching.found for matching in matchings])
    same = np.stack([_same_class(reference, *pair) for pair in zip(tables, matchings, strict=True)])
    cosine = np.stack([matching.cosine for matching in matchings])
    has = ~np.isnan(cosine)
    mean = np.where(has, cosine, 0.0).sum(axis=0) / np.where(has.any(axis=0), has.sum(axis=0), np.nan)
    return pd.DataFrame(
        {
            "feature": np.arange(len(reference)),
            "class": reference.classes,
            "found_by": found.sum(axis=0),
            "mean_cosine": mean,
            "same_class": same.sum(axis=0),
        }
    )


def _same_class(reference: FeatureTable, table: FeatureTable, matching: Matching) -> Bool[ndarray, " d_sae"]:
    """Latents that are found again with the same class."""
    classes = np.array(table.classes, dtype=object)[np.maximum(matching.partner, 0)]
    return matching.found & (classes == np.array(reference.classes, dtype=object))


def summarize(
    reference: FeatureTable, tables: Sequence[FeatureTable], matchings: Sequence[Matching], *, seed: int
) -> dict[str, Any]:
    """Shares found again, mean cosine and class counts; ``all`` stands for every live latent.

    ``found_share`` and ``mean_cosine`` are means over the latents of a class (a latent's own value is its mean over seeds) with a
    bootstrap interval over latents; ``found_by_all`` is the share that every seed finds; ``counts`` are the class's size in
    the run's crosscoder and in each further one.
    """
    frame = found_again(reference, tables, matchings)
    live = frame[frame["class"] != DEAD]
    sizes = [table.summary()["class_counts"] for table in (reference, *tables)]
    names = list(dict.fromkeys(name for size in sizes for name in size if name != DEAD))
    n = len(matchings)
    classes: dict[str, Any] = {}
    for name in ("all", *names):
        part = live if name == "all" else live[live["class"] == name]
        found_by, cosine = np.asarray(part["found_by"]), np.asarray(part["mean_cosine"], dtype=np.float64)
        classes[name] = {
            "n": len(part),
            "found_share": bootstrap_mean(found_by / n, seed=seed),
            "found_by_all": wilson_interval(int((found_by == n).sum()), len(part)),
            "same_class_share": bootstrap_mean(np.asarray(part["same_class"]) / n, seed=seed),
            "mean_cosine": bootstrap_mean(cosine[~np.isnan(cosine)], seed=seed),
            "counts": [len(table) - size[DEAD] if name == "all" else size.get(name, 0)
                       for size, table in zip(sizes, (reference, *tables), strict=True)],
        }  # fmt: skip
    whole = classes["all"]
    share, cosine = whole["found_share"], whole["mean_cosine"]
    sentence = (
        f"Other seeds: of {whole['n']:,} live latents {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] are found again at cosine ≥ "
        f"{matchings[0].min_cosine:g} (mean over {n} further {'seed' if n == 1 else 'seeds'}; mean cosine {cosine.value:.2f})."
    )
    return {"sentence": sentence, "classes": classes}
