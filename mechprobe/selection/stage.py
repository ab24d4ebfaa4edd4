"""The ``select`` stage: score every feature on the gained samples, choose a set, and match random sets to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.files import write_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.records import Outcomes
from mechprobe.selection.agnostic import threshold_stability
from mechprobe.selection.checks import check_parts
from mechprobe.selection.config import Attribution, SelectConfig
from mechprobe.selection.gained import gained_samples, gained_sequences, right_answers
from mechprobe.selection.rankings.attribution import attribute
from mechprobe.selection.rankings.pooled import score_features
from mechprobe.selection.result import SCORES_FILE, SELECTED_FILE, SELECTION_FILE, Selection, SelectionSummary, choose
from mechprobe.selection.rules import check_named
from mechprobe.selection.scores import Scores
from mechprobe.selection.stability import SampleValues, Stability, bootstrap_selection
from mechprobe.selection.summary import selection_frame, selection_summary
from mechprobe.stage_folder import Stage
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

_IN_MANIFEST = (
    "features", "agnostic_sizes", "n_gained", "gained_sizes", "too_few", "control_match", "silent", "note"
)  # fmt: skip
"""Keys of ``selection.json`` that the manifest repeats."""


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
    """Score every feature on the gained samples of every selection task, and choose a set.

    Args:
        crosscoder: The dictionary.
        family: Its models.
        outcomes: Outcomes of base and tuned, with the samples.
        rule: Specification of the features; overrides ``config.rule``.
        site: Where the crosscoder was trained.
        out: Stage folder for ``selection.json``, ``selected.parquet``, ``scores.safetensors`` and the manifest.
        config: Settings; the defaults if None.
        held_out: Task → sample ids that must not select, because they evaluate the interventions.
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest. The stages ``crosscoder`` and ``evals`` must
            also be of these models and this site.
        force: Make a finished stage again.

    Raises:
        SelectionError: No task has enough gained samples, the rule names no feature, or there is no answer to attribute.
        ArtifactError: ``out`` holds other work, or the parts are of other models or another site.
        ModelError: A model of the crosscoder is missing or has another width.
        SiteError: The models have no such site.
    """
    config = config or SelectConfig()
    config = config.replace(rule=rule) if rule else config
    place = site if isinstance(site, Site) else Site.parse(site)
    check_parts(crosscoder, family, place, config, inputs or {})
    named = check_named(config.rule, crosscoder.d_sae, table)
    with activity("gained samples"):
        gained = gained_samples(outcomes, config, held_out or {})
    kinds: tuple[Attribution, ...] = ("ig", "relie")
    kinds = tuple(kind for kind in kinds if kind == config.ranked_by or kind in config.also)
    sequences = gained_sequences(family, outcomes, gained.ids, config)
    answers = right_answers(family, outcomes, gained.ids, config) if kinds else {}
    unused = {"batch_size"} if _sampled(outcomes) else {"batch_size", "base_at_most", "tuned_at_least"}
    identity = {
        **config.model_dump(mode="json", exclude=unused),
        "ranking": config.ranked_by,
        "site": str(place),
        "crosscoder": crosscoder.fingerprint,
        "tokenizer": family.tokenizer_fingerprint,
        "gained": gained.ids,
        **({"text": outcomes.text} if outcomes.text else {}),
        **({"named": named} if named else {}),
        **family.identity,
    }
    with Stage.open(
        out, name="select", config=identity, inputs=inputs, models=family.fingerprints, force=force
    ) as stage:
        if not stage.done:
            scores, samples = score_features(crosscoder, family, sequences, site=place, config=config)
            if gained.note:
                scores = replace(scores, n_gained=(0,) * len(gained.ids))
            attributed = {
                kind: attribute(kind, crosscoder, family, answers, site=place, config=config) for kind in kinds
            }
            scores = replace(scores, **{kind: found.samples.values() for kind, found in attributed.items()})
            if config.ranked_by in attributed:
                samples = attributed[config.ranked_by].samples
            with activity("choosing features and resampling"):
                selection = _chosen(scores, samples, config, str(place), crosscoder.fingerprint, table)
            note = "; ".join(filter(None, (selection.note, gained.note)))
            selection = replace(selection, note=note, outcomes_from=outcomes.engine)
            paths = {kind: found.paths for kind, found in attributed.items()}
            _write(
                stage, selection, selection_summary(selection, config, gained=gained, attribution=paths), config.seed
            )
    return Selection.load(out)


def _sampled(outcomes: Outcomes) -> bool:
    """Whether samples have several responses; the shares that count as gained matter for these only."""
    return any(record.draw > 0 for record in outcomes.records)


def _chosen(
    scores: Scores,
    samples: SampleValues | None,
    config: SelectConfig,
    site: str,
    crosscoder: str,
    table: "pd.DataFrame | None",
) -> Selection:
    """The selection with its stability, which has no bootstrap if ``samples`` is None."""
    chosen = choose(
        scores,
        config.rule,
        site=site,
        crosscoder=crosscoder,
        ranking=config.ranked_by,
        n_controls=config.n_controls,
        threshold=config.threshold,
        seed=config.seed,
        table=table,
    )
    live, features, seed = scores.live, chosen.features, config.seed
    bootstrap = None
    if samples is not None:
        bootstrap = bootstrap_selection(
            samples, config.rule, features, live=live, threshold=config.threshold, n_draws=config.n_bootstrap, seed=seed
        )
    values, thresholds = scores.values(config.ranked_by), config.stability_thresholds
    stability = Stability(
        thresholds=threshold_stability(values, scores.tasks, features, live=live, thresholds=thresholds),
        bootstrap=bootstrap.summary(features, seed=seed) if bootstrap else None,
    )
    return replace(chosen, stability=stability)


def _write(stage: Stage, selection: Selection, summary: SelectionSummary, seed: int) -> None:
    """Write the files of the stage, and finish it."""
    selection.scores.save(stage.folder / SCORES_FILE)
    write_bytes(stage.folder / SELECTED_FILE, selection_frame(selection).to_parquet(index=False))
    summary.save(stage.folder / SELECTION_FILE)
    values = summary.to_dict()
    stage.finish(
        outputs=[SELECTION_FILE, SCORES_FILE, SELECTED_FILE],
        counts=summary.n_gained,
        results={key: values[key] for key in _IN_MANIFEST},
        seed=seed,
    )
