"""What the selected features cause: effects, controls, sizes, doses, tasks left out, and collateral effects."""

from collections.abc import Sequence

from mechprobe.formatting import interval, number
from mechprobe.report.result import ConditionRow, EffectTable, InterventionsSection, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.panels import effect_panels, effect_rows
from mechprobe.report.tables import interventions as tables
from mechprobe.report.titles import edit_title, ordered
from mechprobe.types import POOLED


def interventions_section(files: RunFiles) -> InterventionsSection | None:
    """The section, or None if `mechprobe intervene` has not run."""
    results = files.interventions
    if results is None:
        return None
    tasks = effect_tasks(results, files.tasks)
    panels = effect_panels(results, files.evaluation, tasks)
    return InterventionsSection(
        site=results["site"],
        panels=panels,
        tasks=tasks,
        trained=list(results["trained"]),
        tables=[
            EffectTable(
                title=panel.title,
                set=panel.condition["features"],
                n_features=panel.condition["n_features"],
                rows=effect_rows(panel, results["verdicts"], tasks),
            )
            for panel in panels
        ],
        others=other_rows(results, tasks),
        curves=share_curves(results, tasks),
        size_intervals=tables.size_intervals(results),
        sizes=tables.size_sentences(results),
        doses=tables.dose_rows(results, tasks),
        left_out=tables.left_out_rows(results),
        collateral=tables.collateral_rows(results),
        collateral_of=results.get("collateral"),
        other_tasks=list(results.get("other_tasks") or []),
        rule=results["rule"],
        n_conditions=len(results["conditions"]),
    )


def effect_tasks(results: JsonObject, order: Sequence[str]) -> list[str]:
    """Tasks of the selected conditions in the given order, then the pooled row."""
    selected = [c for c in results["conditions"] if c["set_kind"] == "selected"]
    found = ordered(selected[0]["accuracy"], order) if selected else {}
    return [*(task for task in found if task != POOLED), *(task for task in found if task == POOLED)]


def other_rows(results: JsonObject, tasks: Sequence[str]) -> list[ConditionRow]:
    """Every condition besides clean models, selected sets and random sets, with its change per task in points."""
    return [
        ConditionRow(
            title=edit_title(condition),
            features=condition["features"],
            kind=condition["set_kind"],
            n_features=condition["n_features"],
            cells=[interval((condition["accuracy_delta"] or {}).get(task), signed=True) for task in tasks],
        )
        for condition in results["conditions"]
        if condition["set_kind"] not in ("clean", "selected", "random")
    ]


def share_curves(results: JsonObject, tasks: Sequence[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Edit → task → ``(number of features, share of the ceiling)``, ascending; includes the selected set itself."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    wanted = [c for c in results["conditions"] if c["set_kind"] == "size"]
    titles = {edit_title(condition) for condition in wanted}
    selected = [c for c in results["conditions"] if c["set_kind"] == "selected" and edit_title(c) in titles]
    for condition in [*wanted, *selected]:
        curve = curves.setdefault(edit_title(condition), {})
        for task, share in (condition["share_of_ceiling"] or {}).items():
            if share is not None:
                curve.setdefault(task, []).append((int(condition["n_features"]), number(share)))
    return {
        title: {task: sorted(dict(points).items()) for task, points in ordered(curve, tasks).items()}
        for title, curve in curves.items()
        if any(len(dict(points)) > 1 for points in curve.values())
    }
