"""Nulls of the feature table: what the same analysis says where nothing can be specific to a model.

- ``identical``: every model is base. Whatever is called specific is a false positive; there must be none.
- ``shuffled-labels``: the models' activations change names from sequence to sequence. Differences between models stay in the data, but
  no name has more of them than another: the classes of one model must have about equally many latents.
- ``disjoint-halves``: two dictionaries of base, each trained on one half of the sequences, matched by decoder. No latent may be
  specific within either, and the latents of one that the other does not have are what a comparison of dictionaries trained apart
  would call specific.

Every dictionary is trained as the run's crosscoder was, with the seeds after its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.features.config import FeaturesConfig, NullKind, NullsConfig
from mechprobe.features.stage import resolve_config
from mechprobe.features.table.classes import DEAD, SHARED, UNCONFIRMED
from mechprobe.features.table.collect import collect
from mechprobe.features.table.feature_table import FeatureTable, build_table
from mechprobe.features.table.intervals import sequence_groups
from mechprobe.features.validation.matching import Matching, match_features
from mechprobe.features.validation.null_views import IdenticalModels, NullView, ShuffledLabels, null_batches
from mechprobe.features.validation.retrain import Recipe
from mechprobe.files import read_json, write_json
from mechprobe.progress import progress
from mechprobe.stage_folder import Stage
from mechprobe.statistics import holm, randomization_p, wilson_interval
from sae_training import Crosscoder, train

NULL_FILE = "null.json"
N_DICTIONARIES: Mapping[NullKind, int] = {"identical": 1, "shuffled-labels": 1, "disjoint-halves": 2}
_MULTINOMIAL_DRAWS = 9999


@dataclass(frozen=True)
class NullResult:
    """What a null came to.

    Attributes:
        folder: The stage folder.
        kind: Which null.
        passed: Whether it is what a null must be.
        sentence: The result in words, with its numbers.
        value: The content of ``null.json``.
    """

    folder: Path
    kind: NullKind
    passed: bool
    sentence: str
    value: dict[str, Any]

    @classmethod
    def load(cls, folder: Path | str) -> "NullResult":
        """Read a finished null."""
        value = read_json(Path(folder) / NULL_FILE)
        return cls(Path(folder), value["kind"], bool(value["passed"]), value["sentence"], value)


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
    """Train and read the dictionaries of a null.

    Args:
        kind: ``identical``, ``shuffled-labels`` or ``disjoint-halves``.
        crosscoder: Folder of the run's crosscoder, written by ``mechprobe train-sae``; the null is trained as it was.
        cache: Folder of the activation store.
        out: Stage folder: ``null.json``, and of each dictionary a folder with its weights and its feature table.
        config: Settings of the feature table.
        nulls: Settings of the null.
        device: Where the dictionaries are trained and read.
        force: Make a finished folder again.

    Returns:
        The result, read back where the stage was already done.

    Raises:
        ArtifactError: The crosscoder does not say how it was trained, or ``out`` holds other work.
        ConfigError: The labels of models of different widths shall be shuffled.
    """
    nulls, out, recipe = nulls or NullsConfig(), Path(out), Recipe.of(crosscoder)
    store = ActivationStore.open(cache, models=recipe.shape.model_names)
    config = resolve_config(config or FeaturesConfig(), crosscoder, store)
    settings = {"kind": kind, "nulls": nulls.model_dump(mode="json"), "features": config.model_dump(mode="json")}
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache}
    with Stage.open(out, name="null", config=settings, inputs=inputs, models=store.fingerprints, force=force) as stage:
        if not stage.done:
            reading = _Null(stage, recipe, store, Path(cache), config, nulls, device)
            value = {"kind": kind, **reading.measure(kind)}
            write_json(out / NULL_FILE, value)
            results = {"passed": value["passed"], "sentence": value["sentence"]}
            counts = {"dictionaries": N_DICTIONARIES[kind], "tokens_each": recipe.again(1, nulls).schedule.n_tokens}
            stage.finish(outputs=[NULL_FILE, *reading.outputs], counts=counts, results=results, seed=nulls.seed)
    return NullResult.load(out)


class _Null:
    """One null being measured."""

    def __init__(
        self,
        stage: Stage,
        recipe: Recipe,
        store: ActivationStore,
        cache: Path,
        config: FeaturesConfig,
        nulls: NullsConfig,
        device: str,
    ) -> None:
        self.folder, self.recipe, self.store, self.cache = stage.folder, recipe, store, cache
        self.config, self.nulls, self.device = config, nulls, device
        self.site = str(config.site)
        self.outputs: list[str] = []

    def measure(self, kind: NullKind) -> dict[str, Any]:
        """What goes into ``null.json``."""
        if kind == "identical":
            _, table = self.dictionary("dictionary", 1, self.base_alone())
            return _identical(table)
        if kind == "shuffled-labels":
            _, table = self.dictionary("dictionary", 1, ShuffledLabels(self.store, self.site, self.nulls.seed))
            return _shuffled(table, self.nulls)
        halves = sequence_groups(np.asarray(self.store.tokens.sample), range(self.store.n_rows), 2)
        first, second = (
            self.dictionary(f"half_{number}", number, self.base_alone(half), half)
            for number, half in enumerate(halves, start=1)
        )
        return _apart(first, second, self.nulls)

    def base_alone(self, within: range | None = None) -> IdenticalModels:
        """Base under the name of every model."""
        store = ActivationStore.open(self.cache, models=[self.config.base])
        return IdenticalModels(store, self.recipe.shape.model_names, self.site, within=within)

    def dictionary(
        self, name: str, number: int, view: NullView, rows: range | None = None
    ) -> tuple[Crosscoder, FeatureTable]:
        """Train a dictionary on a view and describe its latents there."""
        recipe, folder = self.recipe.again(number, self.nulls), self.folder / name
        shape = recipe.shape
        width = self.store.widths[self.config.base]
        if shape.widths != (width,) * shape.n_models:
            shape = shape.replace(d_model=width)
        crosscoder = Crosscoder(shape).to(self.device)
        crosscoder.set_scale(view.scale())
        schedule = recipe.schedule
        batches = null_batches(view, schedule.batch_size, schedule.seed, pool_rows=recipe.pool_rows, device=self.device)
        with progress(schedule.n_tokens, f"training {name}", unit="tokens") as advance:
            seen = 0

            def show(metrics: dict[str, Any]) -> None:
                nonlocal seen
                advance(metrics["tokens"] - seen)
                seen = metrics["tokens"]

            train(crosscoder, batches, schedule, out=folder, on_log=show)
        if rows is None and self.config.max_rows is not None:
            rows = range(min(self.config.max_rows, view.n_rows))
        table = build_table(crosscoder, collect(crosscoder, view, self.config, rows=rows), self.config)
        files = ["config.json", "weights.safetensors", *table.save(folder)]
        self.outputs += [f"{name}/{file}" for file in files]
        return crosscoder, table


def specific_classes(counts: Mapping[str, Any]) -> list[str]:
    """Those of the classes that say that some model lacks a latent."""
    return [name for name in counts if name not in (SHARED, UNCONFIRMED, DEAD)]


def _counted(table: FeatureTable) -> dict[str, Any]:
    """Counts of every class with intervals, and how many latents are falsely called specific."""
    summary = table.summary()
    counts, by_norm = summary["class_counts"], summary["class_by_norm_counts"]
    alive = int(summary["n_alive"])
    false = {
        name: sum(found[kind] for kind in specific_classes(found))
        for name, found in (("confirmed", counts), ("by_norm", by_norm))
    }
    return {
        "class_counts": counts,
        "class_by_norm_counts": by_norm,
        "class_intervals": summary["class_intervals"],
        "n_alive": alive,
        "false_positives": {name: wilson_interval(n, alive) for name, n in false.items()},
        "n_false": false,
    }


def _identical(table: FeatureTable) -> dict[str, Any]:
    found = _counted(table)
    n, by_norm, alive = found["n_false"]["confirmed"], found["n_false"]["by_norm"], found["n_alive"]
    passed = n == 0
    sentence = (
        f"Identical models: {n} of {alive:,} live latents are called specific ({by_norm} by decoder norms alone); "
        f"there must be none: {_word(passed)}."
    )
    return {"passed": passed, "sentence": sentence, **found}


def _shuffled(table: FeatureTable, nulls: NullsConfig) -> dict[str, Any]:
    """Classes of equally many models are exchangeable: each number of owners is a test, Holm over them."""
    found = _counted(table)
    layers = _exchangeable(table.models, found["class_counts"])
    tests = [equal_counts_p(list(layer.values()), seed=nulls.seed) for layer in layers]
    adjusted = holm(tests) if tests else []
    within = all(_within(layer, found["class_intervals"]) for layer in layers)
    passed = all(p >= nulls.p_min for p in adjusted)
    parts = [
        f"{', '.join(f'{count} {name}' for name, count in layer.items())} (p = {p:.3g})"
        for layer, p in zip(layers, adjusted, strict=True)
    ]
    sentence = (
        f"Shuffled labels: {'; '.join(parts)}; counts of one kind must be equal but for chance: {_word(passed)}. The smallest of "
        f"each kind {'lies' if within else 'does not always lie'} within the bootstrap interval of the largest."
    )
    tested = [{"counts": layer, "p_holm": p} for layer, p in zip(layers, adjusted, strict=True)]
    return {"passed": passed, "sentence": sentence, "tests": tested, "within_intervals": within, **found}


def _exchangeable(models: Sequence[str], counts: Mapping[str, int]) -> list[dict[str, int]]:
    """Counts of the classes of one owner, of two, ..., absent classes counted as 0."""
    from itertools import combinations

    from mechprobe.features.table.classes import class_name

    layers = []
    for size in range(1, len(models)):
        owners = combinations(range(len(models)), size)
        names = [class_name(models, [place in chosen for place in range(len(models))]) for chosen in owners]
        layers.append({name: int(counts.get(name, 0)) for name in names})
    return layers


def equal_counts_p(counts: Sequence[int], *, seed: int) -> float:
    """p-value of counts that are equal but for chance: sum of squares against multinomial draws (ours); 1 for no counts.

    Example:
        >>> equal_counts_p([3, 4, 3], seed=0) > 0.5
        True
    """
    total = sum(counts)
    if total == 0:
        return 1.0
    draws = np.random.default_rng([seed, 13]).multinomial(total, [1 / len(counts)] * len(counts), _MULTINOMIAL_DRAWS)
    return randomization_p(float(np.square(counts).sum()), np.square(draws).sum(axis=1).astype(float).tolist())


def _within(layer: Mapping[str, int], intervals: Mapping[str, Any] | None) -> bool:
    """Whether the smallest count lies in the interval (latents drawn again) of the largest.

    Not the other way round: a count of 0 is 0 in every draw, so its interval says nothing.
    """
    if intervals is None or not any(layer.values()):
        return not any(layer.values())
    largest = max(layer, key=lambda name: layer[name])
    return intervals["latents"][largest][1] <= min(layer.values())


def _apart(
    first: tuple[Crosscoder, FeatureTable], second: tuple[Crosscoder, FeatureTable], nulls: NullsConfig
) -> dict[str, Any]:
    matching = match_dictionaries(first, second, nulls.min_cosine)
    halves = [_counted(table) for _, table in (first, second)]
    n_false = sum(half["n_false"]["confirmed"] for half in halves)
    n_found = int(matching.found.sum())
    alone = [wilson_interval(half["n_alive"] - n_found, half["n_alive"]) for half in halves]
    passed = n_false == 0
    n_alone, n_alive = (sum(half["n_alive"] for half in halves) - 2 * n_found, sum(half["n_alive"] for half in halves))
    sentence = (
        f"Disjoint halves: {n_false} of {n_alive:,} live latents of two dictionaries of base are called specific within their own "
        f"dictionary: {_word(passed)}. {n_alone} of them ({n_alone / max(n_alive, 1):.0%}) have no partner of cosine "
        f"≥ {nulls.min_cosine:g} in the other: so many would a comparison of dictionaries trained apart call specific to a half."
    )
    cosine = matching.cosine[~np.isnan(matching.cosine)]
    return {
        "passed": passed,
        "sentence": sentence,
        "halves": halves,
        "without_partner": alone,
        "mean_cosine": float(cosine.mean()) if len(cosine) else float("nan"),
        "min_cosine": nulls.min_cosine,
    }


def match_dictionaries(
    first: tuple[Crosscoder, FeatureTable], second: tuple[Crosscoder, FeatureTable], min_cosine: float
) -> Matching:
    """Live latents of two dictionaries of the same models, paired by their decoders in scaled units, models side by side."""
    decoders = [crosscoder.decoder.detach().double().cpu().numpy() for crosscoder, _ in (first, second)]
    alive = (~first[1].dead, ~second[1].dead)
    return match_features(decoders[0], decoders[1], min_cosine=min_cosine, alive=alive)


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def finished_nulls(folder: Path | str) -> list[NullResult]:
    """The finished nulls below ``folder``, by name."""
    return [NullResult.load(path.parent) for path in sorted(Path(folder).glob(f"*/{NULL_FILE}"))
            if (path.parent / "manifest.json").is_file()]  # fmt: skip
