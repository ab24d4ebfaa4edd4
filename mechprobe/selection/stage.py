"""The ``select`` stage: which features go with generalization, chosen by their scores, with matched random sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.files import read_json, write_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes
from mechprobe.selection.checks import check_parts
from mechprobe.selection.config import Attribution, Ranking, SelectConfig
from mechprobe.selection.controls import match_quality, matched_random_sets
from mechprobe.selection.gained import gained_samples, gained_sequences, right_answers
from mechprobe.selection.rankings.attribution import attribute
from mechprobe.selection.rankings.scores import Scores, score_features
from mechprobe.selection.result import selection_frame, selection_summary
from mechprobe.selection.rules import agnostic_features, check_named, leave_one_task_out, resolve
from mechprobe.selection.stability import SampleValues, bootstrap_selection, threshold_stability
from mechprobe.stage_folder import Stage, check_outputs, read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

SELECTION_FILE = "selection.json"
SCORES_FILE = "scores.safetensors"
SELECTED_FILE = "selected.parquet"
DEFAULT_THRESHOLD = 0.2
CALIPER = 0.25
"""Difference of the means of a covariate, in standard deviations over the live features, above which a match is called bad."""


@dataclass(frozen=True)
class Selection:
    """A set of features with what it was chosen from and the random sets that match it.

    Attributes:
        features: Indices, best first.
        site: ``resid_post.<layer>``.
        rule: The specification, for example ``top50``.
        ranking: ``joint``, ``score``, ``ig`` or ``relie``.
        agnostic: Task-agnostic features under the ranking, live ones.
        n_agnostic: How many of ``features`` are task-agnostic.
        controls: Random sets matched on density, decoder norm and write; the i-th feature of each matches the i-th of ``features``.
        note: What a reader must know, or empty.
        crosscoder: Fingerprint of the dictionary.
        scores: All values.
        left_out: Task → features that the same specification chooses from the other tasks alone; empty where the
            specification names its features outright, or only one task selects.
        control_match: How near the random sets come, see `mechprobe.selection.controls.match_quality`.
        stability: Bootstrap frequencies and sizes at several thresholds; empty but for the selection that a stage wrote.
        threshold: Share of a task's maximum above which a feature counts as task-agnostic.
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
    left_out: dict[str, tuple[int, ...]] = field(default_factory=dict)
    control_match: dict[str, Any] = field(default_factory=dict)
    stability: dict[str, Any] = field(default_factory=dict)
    threshold: float = DEFAULT_THRESHOLD

    @classmethod
    def load(cls, folder: Path | str) -> "Selection":
        """Read a finished ``select`` stage; what an older one did not write is empty."""
        check_outputs(Path(folder), read_manifest(folder))
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
            left_out={task: tuple(row["features"]) for task, row in data.get("leave_one_task_out", {}).items()},
            control_match=data.get("control_match", {}),
            stability=data.get("stability", {}),
            threshold=data.get("threshold", DEFAULT_THRESHOLD),
        )

    def choose(
        self,
        rule: str,
        *,
        ranking: Ranking | None = None,
        n_controls: int | None = None,
        threshold: float | None = None,
        seed: int = 0,
        table: "pd.DataFrame | None" = None,
    ) -> "Selection":
        """Another selection from the same scores, with random sets of its own; None takes what this one has."""
        return choose(
            self.scores,
            rule,
            site=self.site,
            crosscoder=self.crosscoder,
            ranking=ranking or self.ranking,
            n_controls=len(self.controls) if n_controls is None else n_controls,
            threshold=self.threshold if threshold is None else threshold,
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
        SelectionError: The rule cannot be read, names nothing, or leaves too few features for the controls; or the scores
            hold no values of the ranking.
    """
    values = scores.values(ranking)
    chosen = resolve(rule, values, live=scores.live, threshold=threshold, table=table)
    controls = matched_random_sets(
        chosen.ids,
        density=scores.density,
        decoder_norm=scores.decoder_norm,
        mean_act=scores.mean_act,
        n_sets=n_controls,
        seed=seed,
    )
    match = match_quality(
        chosen.ids,
        controls,
        density=scores.density,
        decoder_norm=scores.decoder_norm,
        mean_act=scores.mean_act,
        caliper=CALIPER,
    )
    return Selection(
        features=chosen.ids,
        site=site,
        rule=rule,
        ranking=ranking,
        agnostic=tuple(agnostic_features(values, threshold, live=scores.live).tolist()),
        n_agnostic=chosen.agnostic,
        controls=tuple(tuple(ids) for ids in controls),
        note=chosen.note,
        crosscoder=crosscoder,
        scores=scores,
        left_out=leave_one_task_out(rule, values, scores.tasks, live=scores.live, threshold=threshold),
        control_match=match,
        threshold=threshold,
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
        out: Stage folder; ``selection.json``, ``selected.parquet``, ``scores.safetensors`` and the manifest are written there.
        config: Settings.
        held_out: Task → sample ids that must not select (they evaluate the interventions).
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest; the stages ``crosscoder`` and ``evals`` are also
            held to be of these models and this site.
        force: Make a finished stage again.

    Raises:
        SelectionError: No task has enough gained samples, the rule names nothing, or there is no answer to attribute.
        ArtifactError: ``out`` holds other work, or the parts are of other models or another site.
        ModelError: A model of the crosscoder is missing or has another width.
        SiteError: The models have no such site.
    """
    config = config or SelectConfig()
    config = config.replace(rule=rule) if rule else config
    place = site if isinstance(site, Site) else Site.parse(site)
    named = check_named(config.rule, crosscoder.d_sae, table)
    check_parts(crosscoder, family, place, config, inputs or {})
    gained = gained_samples(outcomes, config, held_out or {})
    sequences = gained_sequences(family, outcomes, gained.ids, config)
    asked = _attributions(config)
    answers = right_answers(family, outcomes, gained.ids, config) if asked else {}
    identity = {
        **config.model_dump(mode="json"),
        "site": str(place),
        "crosscoder": crosscoder.fingerprint,
        "tokenizer": family.tokenizer_fingerprint,
        "gained": gained.ids,
        **({"named": named} if named else {}),
        **family.reduced_dtypes,
    }
    with Stage.open(
        out, name="select", config=identity, inputs=inputs, models=family.fingerprints, force=force
    ) as stage:
        if stage.done:
            return Selection.load(out)
        scores, samples = score_features(crosscoder, family, sequences, site=place, config=config)
        attribution: dict[str, Any] = {}
        for kind in asked:
            found = attribute(kind, crosscoder, family, answers, site=place, config=config)
            scores = replace(scores, **{kind: found.samples.values()})
            attribution[kind] = found.quality
            samples = found.samples if kind == config.ranking else samples
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
        selection = replace(selection, stability=_stability(selection, samples, config))
        summary = selection_summary(selection, config, gained=gained, attribution=attribution)
        scores.save(stage.folder / SCORES_FILE)
        write_bytes(stage.folder / SELECTED_FILE, selection_frame(selection).to_parquet(index=False))
        write_json(stage.folder / SELECTION_FILE, summary)
        kept = ("features", "agnostic_sizes", "n_gained", "gained_sizes", "too_few", "control_match", "silent", "note")
        stage.finish(
            outputs=[SELECTION_FILE, SCORES_FILE, SELECTED_FILE],
            counts=summary["n_gained"],
            results={key: summary[key] for key in kept},
            seed=config.seed,
        )
    return Selection.load(out)


def _attributions(config: SelectConfig) -> list[Attribution]:
    """Rankings by attribution that are asked for, each once."""
    kinds: tuple[Attribution, ...] = ("ig", "relie")
    return [kind for kind in kinds if kind == config.ranking or kind in config.also]


def _stability(selection: Selection, samples: SampleValues | None, config: SelectConfig) -> dict[str, Any]:
    """Bootstrap frequencies and the task-agnostic set at several thresholds, as ``selection.json`` keeps them."""
    scores = selection.scores
    found: dict[str, Any] = {
        "thresholds": threshold_stability(
            scores.values(selection.ranking),
            scores.tasks,
            selection.features,
            live=scores.live,
            thresholds=config.stability_thresholds,
        )
    }
    bootstrap = None
    if samples is not None:
        bootstrap = bootstrap_selection(
            samples,
            selection.rule,
            selection.features,
            live=scores.live,
            threshold=config.threshold,
            n_draws=config.n_bootstrap,
            seed=config.seed,
        )
    if bootstrap is not None:
        found["bootstrap"] = bootstrap.summary(selection.features, seed=config.seed)
    return found
