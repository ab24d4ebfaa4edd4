"""The end of a run on the terminal: verdict, accuracies, main interventions, the report and the next command."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.cli.printing import table_lines
from mechprobe.cli.shared_options import DEFAULT_RUN
from mechprobe.cli.stage_lines import accuracy_lines
from mechprobe.evals.result import EvaluationSummary
from mechprobe.files import read_json
from mechprobe.formatting import MISSING, bracketed, percent, points, remark
from mechprobe.report.run_files import comparison_is_current
from mechprobe.run_layout import CHAIN, RunLayout
from mechprobe.types import POOLED

Row = Mapping[str, Any]


def summary_lines(layout: RunLayout) -> list[str]:
    """At most 40 lines: what the run found, where the report is, and what to do next."""
    results = read_json(layout.results) if layout.results.is_file() else None
    found = [*verdict_sentences(results), ""] if results else []
    if layout.accuracy.is_file():
        found += [*accuracy_lines(EvaluationSummary.load(layout.accuracy)), ""]
    if layout.quality.is_file():
        found += [_quality_sentence(read_json(layout.quality)), ""]
    if results:
        found += [*intervention_table(results), ""]
    if comparison_is_current(layout):
        found += [read_json(layout.dictionary_seeds)["sentence"], ""]
    if not found:
        return [f"{layout.folder} holds no finished stage; `mechprobe run --run {layout.folder}` makes them."]
    return [*found, *([f"Report: {layout.page}"] if layout.page.is_file() else []), f"Next: {next_command(layout)}"]


def next_command(layout: RunLayout) -> str:
    """The command that makes the first missing stage; for a complete run, the one that prints the report."""
    there = "" if layout.folder == DEFAULT_RUN else f" --run {layout.folder}"
    for place in CHAIN:
        if not (getattr(layout, place.folder) / "manifest.json").is_file():
            return f"{place.command}{there}"
    return f"mechprobe show {layout.folder} --verbose"


def intervention_summary(results: Row, *, verbose: bool = False) -> list[str]:
    """Verdict and table of one intervene stage; with ``verbose`` the sentence of every verdict and the rule."""
    lines = [*verdict_sentences(results), "", *intervention_table(results)]
    if verbose:
        from mechprobe.report.tables.interventions import sentences

        pooled = [row["sentence"] for row in results["verdicts"] if row["task"] == POOLED]
        further = [text for text in sentences(results) if text not in lines]
        lines += ["", *pooled, *further, f"Rule: {results['rule']}"]
    return lines


def verdict_sentences(results: Row) -> list[str]:
    """The verdict on every main edit, and what a single vector does in comparison."""
    vectors = [row for row in results["conditions"] if row["set_kind"] == "baseline" and row["edit"] == "vector"]
    compared = [
        f"{points(_change(row))} points in {row['model']} ({row['features']})"
        for row in (_best(vectors, model, sign) for model, sign in zip(results["pair"], (1, -1), strict=True))
        if row
    ]
    vector = f"One vector in comparison: {'; '.join(compared)}." if compared else ""
    from mechprobe.report.tables.interventions import control_sentences, readout_sentence

    rivals = [row["sentence"] for name in ("comparisons", "other_rankings") for row in results.get(name) or []]
    more = [*rivals, vector, readout_sentence(results), *control_sentences(results), results.get("outcomes_from", "")]
    return [results["verdict"], *filter(None, more)]


def _change(row: Row) -> float:
    return row["accuracy_delta"][POOLED][0]


def _best(rows: Sequence[Row], model: str, sign: int) -> Row | None:
    """The condition with the largest pooled change in the claimed direction."""
    own = [row for row in rows if row["model"] == model and _change(row) is not None]
    return max(own, key=lambda row: sign * _change(row), default=None)


def intervention_table(results: Row) -> list[str]:
    """Pooled accuracy under every main edit of the selected set, and under the best baseline of each model."""
    conditions = results["conditions"]
    baselines = [row for row in conditions if row["set_kind"] == "baseline"]
    best = [_best(baselines, model, sign) for model, sign in zip(results["pair"], (1, -1), strict=True)]
    judged = {(row["model"], row["edit"]) for row in results["verdicts"]}
    rows = {
        f"{row['model']}  {row['edit']}  {row['features']}": {
            "accuracy": bracketed(row["accuracy"][POOLED]) + remark(cut=(row.get("cut") or {}).get(POOLED)),
            "change": bracketed(row["accuracy_delta"][POOLED]),
            "share of ceiling": _share(row),
        }
        for row in conditions
        if row["set_kind"] in ("clean", "ceiling")
        or (row["set_kind"] == "selected" and (row["model"], row["edit"]) in judged)
        or any(row is each for each in best)
    }
    from mechprobe.report.tables.interventions import smallest_sentence

    n, tasks = conditions[0]["accuracy"][POOLED][3], ", ".join(results["held_out"])
    return [
        f"Interventions at {results['site']}, pooled over {tasks} (n = {n:.0f}), in %",
        *table_lines(rows, ["accuracy", "change", "share of ceiling"]),
        *filter(None, [smallest_sentence(results)]),
    ]


def _share(row: Row) -> str:
    share = row["share_of_ceiling"].get(POOLED)
    return MISSING if share is None else f"{percent(share)} %"


def _quality_sentence(quality: Row) -> str:
    if not quality["trusted"]:
        return f"The crosscoder fails the quality gate, so its features are untrusted. {' '.join(quality['failures'])}"
    fve = ", ".join(f"{name} {model['fve']:.3f}" for name, model in quality["models"].items())
    return f"The crosscoder passes the quality gate (FVE on held-out tokens: {fve})."
