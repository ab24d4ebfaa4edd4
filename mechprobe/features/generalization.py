"""The ``select`` stage: which features go with generalization, chosen by their scores, with matched random sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.artifacts import Stage, read_json, read_manifest, write_json
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.features.config import Ranking, SelectConfig
from mechprobe.features.readout import Readout
from mechprobe.features.scores import Scores, score_features
from mechprobe.features.selection import agnostic_features, matched_random_sets, resolve
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

SELECTION_FILE = "selection.json"
SCORES_FILE = "scores.safetensors"


@dataclass(frozen=True)
class Selection:
    """A set of features with what it was chosen from and the random sets that match it.

    Attributes:
        features: Indices, best first.
        site: ``resid_post.<layer>``.
        rule: The specification, for example ``top50``.
        ranking: ``joint`` or ``score``.
        agnostic: Task-agnostic features under the ranking.
        n_agnostic: How many of ``features`` are task-agnostic.
        controls: Random sets matched on density, decoder norm and write.
        note: What a reader must know, or empty.
        crosscoder: Fingerprint of the dictionary.
        scores: All values.
    """

    features: tuple[int, ...]
    site: str
    rule: str
    ranking: Ranking
    agnostic: tuple[int, ...]
    n_agnostic: int
    controls: tuple[tuple[int, ...], ...]
    note: str
    crosscoder: str
    scores: Scores

    @classmethod
    def load(cls, folder: Path | str) -> "Selection":
        """Read a finished ``select`` stage."""
        read_manifest(folder)
        data = read_json(Path(folder) / SELECTION_FILE)
        return cls(
            features=tuple(data["features"]),
            site=data["site"],
            rule=data["rule"],
            ranking=data["ranking"],
            agnostic=tuple(data["agnostic"]),
            n_agnostic=data["n_agnostic"],
            controls=tuple(tuple(ids) for ids in data["controls"]),
            note=data["note"],
            crosscoder=data["crosscoder"],
            scores=Scores.load(Path(folder) / SCORES_FILE),
        )

    def choose(
        self,
        rule: str,
        *,
        ranking: Ranking | None = None,
        n_controls: int | None = None,
        threshold: float = 0.2,
        seed: int = 0,
        table: "pd.DataFrame | None" = None,
    ) -> "Selection":
        """Another selection from the same scores, with random sets of its own."""
        return choose(
            self.scores,
            rule,
            site=self.site,
            crosscoder=self.crosscoder,
            ranking=ranking or self.ranking,
            n_controls=len(self.controls) if n_controls is None else n_controls,
            threshold=threshold,
            seed=seed,
            table=table,
        )


def choose(  # noqa: PLR0913 - every setting is recorded in the result
    scores: Scores,
    rule: str,
    *,
    site: str,
    crosscoder: str,
    ranking: Ranking = "joint",
    n_controls: int = 20,
    threshold: float = 0.2,
    seed: int = 0,
    table: "pd.DataFrame | None" = None,
) -> Selection:
    """The selection of a rule from scores, with its matched random sets.

    Raises:
        SelectionError: The rule cannot be read, names nothing, or leaves too few features for the controls.
    """
    values = scores.values(ranking)
    live = (scores.density > 0) & (scores.decoder_norm > 0)
    chosen = resolve(rule, values, live=live, threshold=threshold, table=table)
    controls = matched_random_sets(
        chosen.ids,
        density=scores.density,
        decoder_norm=scores.decoder_norm,
        mean_act=scores.mean_act,
        n_sets=n_controls,
        seed=seed,
    )
    return Selection(
        features=chosen.ids,
        site=site,
        rule=rule,
        ranking=ranking,
        agnostic=tuple(int(k) for k in agnostic_features(values, threshold)),
        n_agnostic=chosen.agnostic,
        controls=tuple(tuple(ids) for ids in controls),
        note=chosen.note,
        crosscoder=crosscoder,
        scores=scores,
    )


def select_features(  # noqa: PLR0913 - the promised entry point
    crosscoder: Crosscoder,
    family: ModelFamily,
    outcomes: Outcomes,
    rule: str | None = None,
    *,
    site: Site | str,
    out: Path | str = "selection",
    config: SelectConfig | None = None,
    held_out: Mapping[str, Sequence[str]] | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> Selection:
    """Score every feature on the gained samples of every selection task, and choose.

    Args:
        crosscoder: The dictionary.
        family: Its models.
        outcomes: Of base and tuned, with the samples.
        rule: Overrides the config's.
        site: Where the crosscoder was trained.
        out: Stage folder; ``selection.json``, ``scores.safetensors`` and the manifest are written there.
        config: Settings.
        held_out: Task → sample ids that must not select (they evaluate the interventions).
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest.
        force: Make a finished stage again.

    Raises:
        SelectionError: No task has enough gained samples, or the rule names nothing.
        ArtifactError: ``out`` holds other work.
    """
    config = config or SelectConfig()
    config = config.replace(rule=rule) if rule else config
    place = site if isinstance(site, Site) else Site.parse(site)
    gained, left_out = _gained_samples(outcomes, config, held_out or {})
    identity = {
        **config.model_dump(mode="json"),
        "site": str(place),
        "crosscoder": crosscoder.fingerprint,
        "gained": gained,
    }
    with Stage.open(
        out, name="select", config=identity, inputs=inputs, models=family.fingerprints, force=force
    ) as stage:
        if stage.done:
            return Selection.load(out)
        scores = score_features(crosscoder, family, outcomes, gained, site=place, config=config)
        selection = choose(
            scores,
            config.rule,
            site=str(place),
            crosscoder=crosscoder.fingerprint,
            ranking=config.ranking,
            n_controls=config.n_controls,
            threshold=config.threshold,
            seed=config.seed,
            table=table,
        )
        scores.save(stage.folder / SCORES_FILE)
        summary = _summary(selection, config, left_out)
        write_json(stage.folder / SELECTION_FILE, summary)
        results = {key: summary[key] for key in ("features", "agnostic_sizes", "n_gained", "left_out", "note")}
        stage.finish(
            outputs=[SELECTION_FILE, SCORES_FILE], counts=summary["n_gained"], results=results, seed=config.seed
        )
    return Selection.load(out)


def _gained_samples(
    outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """``({task: sample ids of G_t}, {task left out: size})``, held-out samples excluded."""
    for model in (config.base, config.tuned):
        if model not in outcomes.models:
            raise ConfigError(f"There are no outcomes of model '{model}'; evaluate it first.")
    tasks = config.tasks or tuple(task for task in outcomes.tasks if task not in config.trained)
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(f"There are no outcomes on task '{unknown[0]}'; there are on {', '.join(outcomes.tasks)}.")
    kept: dict[str, list[str]] = {}
    left_out: dict[str, int] = {}
    for task in tasks:
        barred = set(held_out.get(task, ()))
        ids = [k for k in outcomes.gained(task, base=config.base, tuned=config.tuned) if k not in barred]
        if len(ids) >= max(1, config.min_gained):
            kept[task] = ids[: config.max_samples]
        else:
            left_out[task] = len(ids)
    if not kept:
        sizes = ", ".join(f"{task} {n}" for task, n in left_out.items())
        raise SelectionError(
            f"On no task does {config.tuned} get at least {config.min_gained} samples right that {config.base} gets "
            f"wrong ({sizes}); evaluate more samples, or lower select.min_gained."
        )
    return kept, left_out


def _summary(selection: Selection, config: SelectConfig, left_out: Mapping[str, int]) -> dict[str, Any]:
    scores = selection.scores
    sizes: dict[str, Any] = {}
    for ranking in ("joint", "score"):
        values = scores.values(ranking)
        per_task = {
            task: int((row > config.threshold * row.max()).sum())
            for task, row in zip(scores.tasks, values, strict=True)
        }
        sizes[ranking] = {"per_task": per_task, "all_tasks": len(agnostic_features(values, config.threshold))}
    ids = list(selection.features)
    return {
        "features": ids,
        "rule": selection.rule,
        "ranking": selection.ranking,
        "site": selection.site,
        "pair": [config.base, config.tuned],
        "tasks": list(scores.tasks),
        "n_gained": dict(zip(scores.tasks, scores.n_gained, strict=True)),
        "left_out": dict(left_out),
        "agnostic": list(selection.agnostic),
        "n_agnostic": selection.n_agnostic,
        "agnostic_sizes": sizes,
        "scores": {
            name: {task: row[ids].tolist() for task, row in zip(scores.tasks, scores.values(name), strict=True)}
            for name in ("joint", "score")
        },
        "controls": [list(ids) for ids in selection.controls],
        "readout": str(Readout(config.readout, config.near)),
        "positions": config.positions,
        "pooling": config.pooling,
        "threshold": config.threshold,
        "note": selection.note,
        "crosscoder": selection.crosscoder,
    }
