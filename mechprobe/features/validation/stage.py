"""The stages ``null`` and ``stability``: the features of dictionaries trained again, on null data or with other seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.dictionary.stage import train_crosscoder
from mechprobe.errors import ConfigError
from mechprobe.features.config import FeaturesConfig, NullKind, NullsConfig
from mechprobe.features.result import NullResult, Stability, load_null
from mechprobe.features.table.feature_table import feature_table
from mechprobe.features.validation.matching import found_again, match_dictionaries, summarize
from mechprobe.features.validation.null_dictionaries import NullDictionaries
from mechprobe.features.validation.null_verdicts import halves_null, identical_null, shuffled_null
from mechprobe.features.validation.retrain import Retraining, TabledDictionary
from mechprobe.files import write_bytes
from mechprobe.progress import activity
from mechprobe.stage_folder import MANIFEST
from sae_training import Crosscoder

NULL_FILE = "null.json"
STABILITY_FILE = "stability.json"
FOUND_FILE = "found_again.parquet"
N_DICTIONARIES: Mapping[NullKind, int] = {"identical": 1, "shuffled-labels": 1, "disjoint-halves": 2}


def measure_null(
    kind: NullKind,
    *,
    crosscoder: Path | str,
    cache: Path | str,
    out: Path | str,
    config: FeaturesConfig | None = None,
    nulls: NullsConfig | None = None,
    device: str = "cpu",
    force: bool = False,
) -> NullResult:
    """Train the dictionaries of a null, and measure what the feature table says of them.

    Args:
        kind: ``identical``, ``shuffled-labels`` or ``disjoint-halves``; see `mechprobe.features.validation.null_verdicts`.
        crosscoder: Folder of the run's crosscoder, written by ``mechprobe train-sae``. The null takes its training settings.
        cache: Folder of the activation store.
        out: Stage folder: ``null.json``, and one folder per dictionary with its weights and its feature table.
        config: Settings of the feature tables.
        nulls: Settings of the null.
        device: torch device of the dictionaries.
        force: Make a finished folder again.

    Returns:
        The result, read from the folder where the stage is finished.

    Raises:
        ArtifactError: The crosscoder does not record its training, or ``out`` holds other work.
        ConfigError: The labels of models of different widths cannot be shuffled.
    """
    retraining = Retraining.open(crosscoder, cache, config, nulls, device)
    with retraining.stage(out, "null", {"kind": kind}, force=force) as stage:
        if not stage.done:
            dictionaries = NullDictionaries(stage.folder, retraining)
            if kind == "identical":
                result = identical_null(dictionaries.identical())
            elif kind == "shuffled-labels":
                result = shuffled_null(dictionaries.shuffled(), retraining.nulls)
            else:
                result = halves_null(*dictionaries.halves(), retraining.nulls)
            result.save(stage.folder / NULL_FILE)
            stage.finish(
                outputs=[NULL_FILE, *dictionaries.outputs],
                counts={"dictionaries": N_DICTIONARIES[kind], "tokens_each": retraining.again(1).schedule.n_tokens},
                results={"passed": result.passed, "sentence": result.sentence},
                seed=retraining.nulls.seed,
            )
    return load_null(Path(out) / NULL_FILE)


def finished_nulls(folder: Path | str) -> list[NullResult]:
    """The finished nulls below ``folder``, by name."""
    files = sorted(Path(folder).glob(f"*/{NULL_FILE}"))
    return [load_null(path) for path in files if (path.parent / MANIFEST).is_file()]


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
    """Train the run's crosscoder again with other seeds, and match the features of every dictionary to its features.

    The ``n_seeds`` dictionaries take the seeds that follow the crosscoder's. ``out`` gets ``stability.json``,
    ``found_again.parquet`` (see `mechprobe.features.validation.matching.found_again`), and ``seed_<n>/`` as ``train-sae``
    writes it. The other arguments, and what is returned, are as in `measure_null`.

    Raises:
        ConfigError: ``n_seeds`` is below 1.
        ArtifactError: The crosscoder does not record its training, or ``out`` holds other work.
    """
    if n_seeds < 1:
        raise ConfigError(f"--seeds is {n_seeds}; give at least 1 further seed.")
    retraining = Retraining.open(crosscoder, cache, config, nulls, device)
    with retraining.stage(out, "stability", {"n_seeds": n_seeds}, force=force) as stage:
        if not stage.done:
            own = Crosscoder.load(crosscoder, device)
            reference = (own, feature_table(own, retraining.store, retraining.config))
            others = dict(_seed_dictionary(retraining, stage.folder, number) for number in range(1, n_seeds + 1))
            min_cosine = retraining.nulls.min_cosine
            with activity("matching the dictionaries"):
                matchings = [match_dictionaries(reference, other, min_cosine) for other in others.values()]
                tables = [table for _, table in others.values()]
                frame = found_again(reference[1], tables, matchings)
            write_bytes(stage.folder / FOUND_FILE, frame.to_parquet(index=False))
            seed = retraining.nulls.seed
            with activity("intervals"):
                result = summarize(reference[1], tables, matchings, seeds=list(others), bootstrap_seed=seed)
            result.save(stage.folder / STABILITY_FILE)
            stage.finish(
                outputs=[STABILITY_FILE, FOUND_FILE],
                counts={"dictionaries": len(others), "features": len(reference[1])},
                results={"sentence": result.sentence, "found_share": result.classes["all"].found_share},
                seed=seed,
            )
    return Stability.load(Path(out) / STABILITY_FILE)


def finished_stability(folder: Path | str) -> Stability | None:
    """The finished stability measurement in ``folder``; None where there is none."""
    folder = Path(folder)
    return Stability.load(folder / STABILITY_FILE) if (folder / MANIFEST).is_file() else None


def _seed_dictionary(retraining: Retraining, folder: Path, number: int) -> tuple[int, TabledDictionary]:
    """The seed and the dictionary of one further seed."""
    training, store, out = retraining.again(number), retraining.store, folder / f"seed_{number}"
    options: dict[str, Any] = {"site": training.site, "device": retraining.device, "pool_rows": training.pool_rows}
    found = train_crosscoder(store, training.shape, training.schedule, out, **options)
    return training.schedule.seed, (found, feature_table(found, store, retraining.config))
