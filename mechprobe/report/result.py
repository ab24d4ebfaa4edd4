"""Typed content of ``report.json``, from which the HTML and Markdown pages are rendered.

Table cells are text that is already formatted by `mechprobe.formatting`. A mapping typed `JsonObject` is copied unchanged from
the result file of another stage.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field, model_serializer

from mechprobe.results import Result

JsonObject = dict[str, Any]


class AccuracyRow(Result):
    """Accuracy on one task: ``cells`` and ``p`` (paired test, Holm-adjusted) per model, ``forced`` for the forced prefix."""

    task: str
    n: int
    cells: list[str]
    forced: str | None
    p: list[str]


class SampledTable(Result):
    """What ``n`` responses to each sample say; a row is model, task, and one cell per column."""

    n: int
    columns: list[str]
    rows: list[list[str]]


class BehaviourSection(Result):
    """What the models can do, the label of the forced-prefix baseline, and each model's tasks with unparsed responses.

    ``sampled`` is there where samples have several responses; ``accuracy`` is then the share of right ones.
    """

    models: list[str]
    rows: list[AccuracyRow]
    forced: str | None
    unparsed: dict[str, str]
    sampled: SampledTable | None = None

    @model_serializer(mode="wrap")
    def _without_sampling(self, handler: Callable[[Any], JsonObject]) -> JsonObject:
        value = handler(self)
        return value if self.sampled is not None else {k: v for k, v in value.items() if k != "sampled"}


class CeilingRow(Result):
    """Accuracies under whole-residual patching at one site."""

    site: str
    chosen: bool
    sufficiency_share: str
    necessity_share: str
    sufficiency: list[str]
    necessity: list[str]


class CeilingsSection(Result):
    """Ceilings of every site."""

    tasks: list[str]
    base: str
    tuned: str
    chosen: str | None
    reason: str
    rows: list[CeilingRow]


class QualityRow(Result):
    """Quality of the crosscoder on one model; ``ce`` holds the clean, spliced and zero-ablated cross-entropies."""

    model: str
    fve: str
    fve_per_token: str
    l0: str
    dead: str
    ce: str
    recovered: str
    kl: str
    n: str


class DictionarySection(Result):
    """The crosscoder and its quality gate; the spliced loss is over the tokens ``targets``, ``all`` or ``response``."""

    config: JsonObject
    rows: list[QualityRow]
    l0: str | None
    dead: str | None
    n_rows: int | None
    targets: str | None
    trusted: bool | None
    failures: list[str]
    steps: int | None
    tokens: int | None


class ClassCount(Result):
    """Number of features in one class, and the number if decoder norms alone decide."""

    name: str
    count: int
    by_norm: int


class SelectionSection(Result):
    """The selected features."""

    sentence: str
    ids: list[int]
    n_controls: int
    note: str


class FeatureRow(Result):
    """Statistics and example contexts of one feature. Lists have one cell per model, or per tuned model."""

    feature: int
    class_: str = Field(alias="class")
    mas: list[str]
    nrn: list[str]
    density: list[str]
    nu: list[str]
    cosine: list[str]
    shift: list[str]
    score: str | None = None
    examples: list[JsonObject]


class FeaturesSection(Result):
    """Feature classes, the selection, and example contexts."""

    summary: JsonObject | None
    trusted: bool
    models: list[str]
    tuned: list[str]
    counts: list[ClassCount]
    selection: SelectionSection | None
    selected: list[FeatureRow]
    others: list[FeatureRow]


class EffectPanel(Result):
    """One edit of the selected set with its controls: changes of accuracy by task."""

    title: str
    model: str
    edit: str
    condition: JsonObject
    selected: JsonObject
    """With intervals."""
    random: dict[str, list[float]]
    ceiling: dict[str, float] | None
    others: dict[str, dict[str, float]]
    """Kind of control → task → mean change."""
    labels: dict[str, str]
    """Kind of control → label that replaces the default one."""
    baseline: dict[str, float] | None = None
    """Under the forced prefix."""
    baseline_label: str | None = None

    @model_serializer(mode="wrap")
    def _without_missing_baseline(self, handler: Callable[[Any], JsonObject]) -> JsonObject:
        value = handler(self)
        return value if self.baseline is not None else {k: v for k, v in value.items() if not k.startswith("baseline")}


class EffectRow(Result):
    """The effect of one edit on one task."""

    task: str
    n: str
    accuracy: str
    change: str
    random: str
    draws: str
    p: str
    p_mcnemar: str
    ceiling: str
    share: str
    flip_right: str
    flip_wrong: str
    verdict: str


class EffectTable(Result):
    """Effects of one edit of the selected set."""

    title: str
    set: str | None
    n_features: int | None
    rows: list[EffectRow]


class ConditionRow(Result):
    """Changes under one further condition, one cell per task."""

    title: str
    features: str
    kind: str
    n_features: int | str
    cells: list[str]


class InterventionsSection(Result):
    """Effects of editing the selected features."""

    site: str | None
    panels: list[EffectPanel]
    tasks: list[str]
    trained: list[str]
    tables: list[EffectTable]
    others: list[ConditionRow]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """Edit → task → ``(number of features, share of the ceiling)``."""
    size_intervals: dict[str, list[list[Any]]]
    sizes: list[str]
    smallest: str
    doses: list[JsonObject]
    left_out: list[JsonObject]
    collateral: list[JsonObject]
    collateral_of: JsonObject | None
    other_tasks: list[str]
    rule: str
    n_conditions: int


class DictionarySeedsSection(Result):
    """The sets and verdicts of several dictionaries: a row per dictionary, then one with the spread of the effects."""

    sentence: str
    columns: list[str]
    rows: list[list[str]]


class MissingStage(Result):
    """A stage that is not finished, and the command that runs it."""

    name: str
    state: str
    command: str
    folder: str


class ProvenanceRow(MissingStage):
    """How a stage was made. ``precision`` is how its models ran; empty where it ran none."""

    seconds: str
    precision: str
    seed: int | None
    commit: str
    counts: JsonObject
    config: JsonObject
    models: dict[str, str]
    packages: dict[str, str | None]


class Report(Result):
    """Everything that a report says. A section is None if its stage has not run."""

    name: str
    question: str
    notes: list[str]
    verdict: str
    warnings: list[str]
    findings: list[str]
    evaluation: BehaviourSection | None
    localization: CeilingsSection | None
    crosscoder: DictionarySection | None
    features: FeaturesSection | None
    interventions: InterventionsSection | None
    dictionary_seeds: DictionarySeedsSection | None = None
    missing: list[MissingStage]
    provenance: list[ProvenanceRow]
    figures: list[str] = Field(default_factory=list)
    """Files of the figures, relative to the report folder."""
