"""`figure_of`: the main figure of every result, which its ``plot`` draws."""

from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.baselines.result import Baselines
from mechprobe.dictionary.result import Quality
from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.dynamics.figure import draw_curves
from mechprobe.dynamics.logprobs.figure import draw_log_probs
from mechprobe.dynamics.logprobs.result import LogprobsResult
from mechprobe.dynamics.order import HalfChange, LeadLag, Order
from mechprobe.dynamics.result import DipResult, Dynamics, LengthCourse
from mechprobe.emergence.result import Emergence
from mechprobe.errors import InputError
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.skills.summary import SkillScores
from mechprobe.evals.summary import accuracy_of
from mechprobe.features.result import FeatureSummary, HalvesNull, SpecificCounts, Stability
from mechprobe.features.stage import FeatureAnalysis
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.interventions.dictionaries.result import DictionarySeeds
from mechprobe.interventions.harness.result import HarnessResults
from mechprobe.interventions.result import InterventionResults
from mechprobe.localization.result import SiteCeilings
from mechprobe.posttrain.result import PosttrainResult
from mechprobe.records import Outcomes
from mechprobe.report.figures.behaviour import accuracy_figure, ceilings_figure
from mechprobe.report.figures.dictionary import quality_figure, shares_figure
from mechprobe.report.figures.drift import divergence_figure, profiles_figure, updates_figure
from mechprobe.report.figures.emergence import curves_figure
from mechprobe.report.figures.intervals import intervals_figure
from mechprobe.report.figures.interventions import effects_figure
from mechprobe.report.figures.lines import lines_figure
from mechprobe.report.figures.rivals import rivals_figure
from mechprobe.report.sections.interventions import effect_panels, effect_tasks
from mechprobe.selection.result import Selection
from mechprobe.sweep.result import CellResult, SweepResults


@singledispatch
def figure_of(result: Any) -> Figure:
    """The main figure of a result.

    Raises:
        InputError: There is none for its type, or the result is empty.
    """
    raise InputError(f"There is no figure of a {type(result).__name__}; print it, or read its fields.")


figure_of.register(SiteCeilings, ceilings_figure)
figure_of.register(DivergenceResult, divergence_figure)
figure_of.register(WeightsResult, updates_figure)
figure_of.register(Emergence, curves_figure)
figure_of.register(LogprobsResult, draw_log_probs)


@figure_of.register
def _(found: ActivationStore) -> Figure:
    norms = found.norms
    if norms is None:
        raise InputError(f"{found.folder} has no norms; cache it again with this release.")
    groups = {
        str(site): {model: (one.median, one.median, one.q99, found.n_rows) for model, one in
                    ((model, sites[str(site)]) for model, sites in norms.models.items())}
        for site in found.sites
    }  # fmt: skip
    return intervals_figure(groups, unit="norm of a row: median, and the 99 % quantile", scale=1)


@figure_of.register
def _(found: Outcomes) -> Figure:
    by_model = {model: [one for one in found.records if one.model == model] for model in found.models}
    return accuracy_figure({model: accuracy_of(records) for model, records in by_model.items()})


@figure_of.register
def _(found: EvaluationSummary) -> Figure:
    return accuracy_figure(found.accuracy, found.force_prefix)


@figure_of.register
def _(found: Quality) -> Figure:
    rows = {name: {"own read-out": one.fve_readout, "joint read-out": one.fve} for name, one in found.models.items()}
    return quality_figure(rows, gate=found.gate.min_fve)


@figure_of.register
def _(found: Baselines) -> Figure:
    return quality_figure(
        {model: {kind: one.fve for kind, one in kinds.items()} for model, kinds in found.models.items()}
    )


@figure_of.register
def _(found: FeatureSummary) -> Figure:
    return shares_figure(found.to_dict())


@figure_of.register
def _(found: FeatureTable) -> Figure:
    return shares_figure(found.summary().to_dict())


@figure_of.register
def _(found: FeatureAnalysis) -> Figure:
    return figure_of(found.table)


@figure_of.register
def _(found: SpecificCounts) -> Figure:
    return intervals_figure({"features called specific": found.false_positives}, unit="share of the live features (%)")


@figure_of.register
def _(found: HalvesNull) -> Figure:
    rows = {f"half {place}": cell for place, cell in enumerate(found.without_partner, start=1)}
    return intervals_figure({"features that the other half lacks": rows}, unit="share of the live features (%)")


@figure_of.register
def _(found: Stability) -> Figure:
    rows = {name: one.found_share for name, one in found.classes.items()}
    title = f"found by another seed (cosine ≥ {found.min_cosine:g})"
    return intervals_figure({title: rows}, unit="share of the features (%)")


@figure_of.register
def _(found: Selection) -> Figure:
    values, ids = found.scores.values(found.ranking), list(found.features)
    lines = {task: values[row, ids] for row, task in enumerate(found.scores.tasks)}
    return lines_figure(
        {f"{found.rule} at {found.site}": lines},
        np.arange(1, len(ids) + 1),
        x_label="rank of the feature",
        unit=f"{found.ranking} of the feature",
    )


@figure_of.register
def _(found: InterventionResults) -> Figure:
    values = found.to_dict()
    if found.comparisons:
        return rivals_figure(values)
    tasks = effect_tasks(values, found.tasks)
    return effects_figure([panel.to_dict() for panel in effect_panels(values, None, tasks)], tasks)


@figure_of.register
def _(found: DictionarySeeds) -> Figure:
    seeds = [f"seed {one.seed}" for one in found.dictionaries]
    groups = {
        f"{row.edit} in {row.model}": {seed: (*one, row.n) for seed, one in zip(seeds, row.effects, strict=True)}
        for row in found.edits
    }
    return intervals_figure(_given(found, groups), unit="pooled effect (points)", marked=(0,))


@figure_of.register
def _(found: HarnessResults) -> Figure:
    groups: dict[str, dict[str, Any]] = {}
    for row in found.conditions:
        for task, metrics in row.metrics.items():
            for key, cell in metrics.items():
                if cell.change is not None and row.set_kind != "random":
                    title = f"{task}: {key.removesuffix(',none')}"
                    groups.setdefault(title, {})[f"{row.edit} in {row.model}"] = cell.change
    return intervals_figure(_given(found, groups), unit="change against the clean model", scale=1, marked=(0,))


@figure_of.register
def _(found: SweepResults) -> Figure:
    groups = {}
    for name in found.order:
        info, cells = found.benchmarks[name], found.cells[name]
        factor = 1 if info.share else 0.01  # the axis is in percent; other metrics keep their unit
        shown = {model: cells[model].value for model in found.models if model in cells}
        groups[f"{info.title}, {info.metric}"] = {
            model: (*(factor * end for end in cell[:3]), cell.n) for model, cell in shown.items()
        }
    return intervals_figure(_given(found, groups), unit="percent, or the unit of the metric")


@figure_of.register
def _(found: CellResult) -> Figure:
    info = found.benchmark
    scale, unit = (100, f"{info.metric} (%)") if info.share else (1, info.metric)
    rows = {found.model: found.value, **({} if found.sampled is None else _sampled_rows(found.sampled))}
    return intervals_figure({info.title: rows}, unit=unit, scale=scale)


def _sampled_rows(found: Any) -> dict[str, Any]:
    return {f"pass@{k}": cell for k, cell in found.pass_at.items()} | {f"maj@{found.n}": found.majority}


@figure_of.register
def _(found: SkillScores) -> Figure:
    names = {"boxed": "right answer", "behaviour": "behaviour asked for", "strict": "both"}
    groups = {
        title: {row.name: cell for row in found.rows if row.by == "skill" and (cell := getattr(row, name)) is not None}
        for name, title in names.items()
    }
    return intervals_figure(_given(found, {title: rows for title, rows in groups.items() if rows}), unit="share (%)")


@figure_of.register
def _(found: PosttrainResult) -> Figure:
    steps = np.array([line.get("step", place) for place, line in enumerate(found.curve, start=1)])
    names = [
        name for name in dict.fromkeys(key for line in found.curve for key in line) if name not in ("step", "epoch")
    ]
    series = {name: np.array([line.get(name, float("nan")) for line in found.curve], dtype=float) for name in names}
    return lines_figure(
        _given(found, {name: {found.arm: values} for name, values in series.items()}), steps, x_label="step", unit=""
    )


@figure_of.register
def _(found: ProbeResult) -> Figure:
    return profiles_figure(_given(found, found.behaviour)["right"], found.base)


@figure_of.register
def _(found: Dynamics) -> Figure:
    return draw_curves(_given(found, found.curves), found.spaced_by)


@figure_of.register
def _(found: Order) -> Figure:
    rows = {half.name: half.step for half in found.halves}
    return intervals_figure(_given(found, {"half of the change": rows}), unit="step", scale=1)


@figure_of.register
def _(found: HalfChange) -> Figure:
    return intervals_figure({"half of the change": {found.name: found.step}}, unit="step", scale=1)


@figure_of.register
def _(found: LeadLag) -> Figure:
    rows = {f"{found.second} after {found.first}": found.lag}
    return intervals_figure({"steps between the halves of the changes": rows}, unit="steps", scale=1, marked=(0,))


@figure_of.register
def _(found: DipResult) -> Figure:
    return draw_curves({"": found})


@figure_of.register
def _(found: LengthCourse) -> Figure:
    lengths = np.array(found.lengths, dtype=float)
    panels = {"mean length of the responses": {"tokens": lengths}}
    return lines_figure(panels, np.arange(len(lengths)), x_label="checkpoint (0 is base)", unit="tokens")


def _given(found: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of a figure; an error where there are none."""
    if not parts:
        raise InputError(f"This {type(found).__name__} is empty, so there is nothing to draw.")
    return parts
