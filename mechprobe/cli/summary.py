"""The end of a run on the terminal: verdict, accuracies, main interventions, the report and the next command."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.cli.printing import table_lines
from mechprobe.cli.selection_lines import selection_lines
from mechprobe.cli.stage_lines import accuracy_lines, ceiling_lines, intervention_lines, quality_lines
from mechprobe.evals.result import EvaluationSummary
from mechprobe.files import read_json
from mechprobe.formatting import MISSING, bracketed, percent
from mechprobe.run_layout import CHAIN, RunLayout
from mechprobe.types import POOLED

Row = Mapping[str, Any]


def summary_lines(layout: RunLayout) -> list[str]:
    """At most 40 lines: what the run found, where the report is, and what to do next."""
    found: list[str] = []
    if layout.results.is_file():
        found += [*verdict_sentences(read_json(layout.results)), ""]
    if layout.accuracy.is_file():
        found += [*accuracy_lines(EvaluationSummary.load(layout.accuracy)), ""]
    if layout.quality.is_file():
        found += [_quality_sentence(read_json(layout.quality)), ""]
    if layout.results.is_file():
        found += [*intervention_table(read_json(layout.results)), ""]
    if not found:
        return [f"{layout.folder} holds no finished stage; `mechprobe run --run {layout.folder}` makes them."]
    if layout.page.is_file():
        found.append(f"Report: {layout.page}")
    return [*found, f"Next: {next_command(layout)}"]


def all_lines(layout: RunLayout) -> list[str]:
    """Every table of every finished stage."""
    makers: list[tuple[Path, Callable[[Any], Sequence[str]]]] = [
        (layout.accuracy, lambda data: accuracy_lines(EvaluationSummary.model_validate(data))),
        (layout.ceilings, ceiling_lines),
        (layout.quality, quality_lines),
        (layout.selected, _selection_lines),
        (layout.results, intervention_lines),
    ]
    found = [line for path, make in makers if path.is_file() for line in [*make(read_json(path)), ""]]
    if not found:
        return summary_lines(layout)
    return [*found, *([f"Report: {layout.page}"] if layout.page.is_file() else []), f"Next: {next_command(layout)}"]


def _selection_lines(data: Row) -> list[str]:
    from mechprobe.selection.result import SelectionSummary

    return selection_lines(SelectionSummary.model_validate(data))


def next_command(layout: RunLayout) -> str:
    """The command that makes the first missing stage; for a complete run, the one that prints every table."""
    there = "" if layout.folder == Path("runs/lab") else f" --run {layout.folder}"
    for place in CHAIN:
        made = layout.page if place.name == "report" else layout.folder / place.folder / "manifest.json"
        if not made.is_file():
            return f"{place.command}{there}"
    return f"mechprobe show {layout.folder} --verbose"


def intervention_summary(results: Row) -> list[str]:
    """Verdict and table of one intervene stage."""
    return [*verdict_sentences(results), "", *intervention_table(results)]


def verdict_sentences(results: Row) -> list[str]:
    """The verdict on every main edit, and what a single vector does in comparison."""
    vectors = [row for row in results["conditions"] if row["set_kind"] == "baseline" and row["edit"] == "vector"]
    base, tuned = results["pair"]
    told = [_best(vectors, base, 1), _best(vectors, tuned, -1)]
    compared = " and ".join(
        f"{'gives' if row['model'] == base else 'takes'} {_points(row)} points in {row['model']}" for row in told if row
    )
    kinds = {row["features"] for row in told if row}
    return [results["verdict"], *([f"One vector ({', '.join(sorted(kinds))}) {compared}."] if compared else [])]


def _best(rows: Sequence[Row], model: str, sign: int) -> Row | None:
    """The condition with the largest pooled change in the claimed direction."""
    own = [row for row in rows if row["model"] == model and row["accuracy_delta"][POOLED][0] is not None]
    return max(own, key=lambda row: sign * row["accuracy_delta"][POOLED][0], default=None)


def _points(row: Row) -> str:
    return f"{abs(100 * row['accuracy_delta'][POOLED][0]):.0f}"


_MAIN = ("clean", "ceiling", "selected")


def intervention_table(results: Row) -> list[str]:
    """Pooled accuracy under every main edit of the selected set, and under the best baseline of each model."""
    conditions, (base, tuned) = results["conditions"], results["pair"]
    baselines = [row for row in conditions if row["set_kind"] == "baseline"]
    best = [_best(baselines, base, 1), _best(baselines, tuned, -1)]
    edits = {(row["model"], row["edit"]) for row in results["verdicts"]}
    shown = [
        row
        for row in conditions
        if (row["set_kind"] in _MAIN and (row["set_kind"] != "selected" or (row["model"], row["edit"]) in edits))
        or any(row is each for each in best)
    ]
    rows = {
        f"{row['model']}  {row['edit']}  {row['features']}": {
            "accuracy": bracketed(row["accuracy"][POOLED]),
            "change": bracketed(row["accuracy_delta"][POOLED]),
            "share of ceiling": _share(row),
        }
        for row in shown
    }
    n = conditions[0]["accuracy"][POOLED][3]
    held_out = ", ".join(results["held_out"])
    return [
        f"Interventions at {results['site']}, pooled over {held_out} (n = {n:.0f}), in %",
        *table_lines(rows, ["accuracy", "change", "share of ceiling"]),
    ]


def _share(row: Row) -> str:
    share = row["share_of_ceiling"].get(POOLED)
    return MISSING if share is None else f"{percent(share)} %"


def _quality_sentence(quality: Row) -> str:
    fve = ", ".join(f"{name} {model['fve']:.3f}" for name, model in quality["models"].items())
    state = "passes" if quality["trusted"] else "fails"
    return f"The crosscoder {state} the quality gate (FVE on held-out tokens: {fve})."
