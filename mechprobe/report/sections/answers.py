"""The five questions of a reader, answered from the run: which features, how sure, against what, what would refute it, what next."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.formatting import edit_title, interval, listing, p_value, points, short_list
from mechprobe.interventions.verdicts.rule import REFUTED_N, REFUTED_SHARE, SUPPORTED
from mechprobe.report.result import Answer, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.features import class_sentence, selection_sentence
from mechprobe.report.sections.parts import counted
from mechprobe.report.sections.plain_verdict import comparison_of, main_rows
from mechprobe.report.tables.interventions import size_sentences, smallest_sentence

Row = Mapping[str, Any]
_WIDE = 0.1
"""Width of an interval, as a share, from which the answer names `mechprobe plan-samples`."""


def answers(files: RunFiles) -> list[Answer]:
    """The five answers, in order."""
    results = files.interventions
    rows = main_rows(results) if results else []
    none = [_no_verdict(files)]
    return [
        Answer(question="Which features", sentences=_which(files)),
        Answer(question="How sure", sentences=_how_sure(files, rows) if rows else none),
        Answer(question="Against what", sentences=_against(results or {}, rows) if rows else ["No edit was compared with anything yet."]),
        Answer(question="What would refute it", sentences=_refute(files, rows) if rows else ["Nothing is claimed yet that could be refuted."]),
        Answer(question="What next", sentences=_next(files, rows)),
    ]  # fmt: skip


def _no_verdict(files: RunFiles) -> str:
    trust = "" if files.trusted else " The crosscoder did not pass the quality gate, or was not measured."
    return f"No edit was judged, so nothing here is causal.{trust}"


def _which(files: RunFiles) -> list[str]:
    selection = files.selection
    if selection is None:
        shown = f" {class_sentence(files.features)}" if files.features else ""
        return [f"None are selected yet; `{files.stages['select'].place.command}` ranks and selects them.{shown}"]
    ids = files.selected
    first = f" The first are {short_list([str(feature) for feature in ids], 8)}." if ids else ""
    site = f" They are read and edited at {selection['site']}." if selection.get("site") else ""
    return [selection_sentence(selection) + first + site, *size_sentences(files.interventions or {})[:1]]


def _how_sure(files: RunFiles, rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        p = f", p {_p(row['p_random'])} against random sets" if row.get("p_random") is not None else ""
        found.append(
            f"{_named(row)}: {interval(row['effect'])} points in the claimed direction, n = {row['n']:,}{p}; verdict: {row['verdict']}."
        )
    found.append(smallest_sentence(files.interventions or {}))
    trust = "passed" if files.trusted else "did not pass"
    seeds = files.dictionary_seeds
    several = str(seeds["sentence"]) if seeds else "All of this rests on one dictionary and one post-training run."
    return [*filter(None, found), f"The crosscoder {trust} the quality gate. {several}"]


def _p(value: Any) -> str:
    shown = p_value(value)
    return shown if shown.startswith("<") else f"= {shown}"


def _named(row: Row) -> str:
    title = edit_title({"edit": row["edit"], "model": row["model"]})
    return f"{title[:1].upper()}{title[1:]}"


def _against(results: JsonObject, rows: Sequence[Row]) -> list[str]:
    """What each effect was compared with, and how much that does."""
    found = []
    for row in rows:
        shown = [f"the whole residual {points(row['ceiling'])}"] if row.get("ceiling") is not None else []
        shown += [f"{n} {name}, at most {points(most)}" for name, n, most in controls_of(row)]
        rivals = (comparison_of(results, row) or {}).get("rivals", [])
        best = best_rival(results, row)
        if best is not None:
            shown.append(f"the best of {counted(len(rivals), 'rival')} {points(best['effect'][0])} ({best['name']})")
        found.append(f"{_named(row)} ({points(row['effect'][0])} points): {'; '.join(shown) or 'nothing'}.")
    return found


def controls_of(row: Row) -> list[tuple[str, int, float]]:
    """``(name, number of draws, largest effect)`` of every kind of control."""
    kinds = (
        ("random sets", "n_random", "random_max"),
        ("random sets at the set's norm", "n_rescaled", "rescaled_max"),
        ("changes of equal norm along other decoders", "n_equal_norm", "equal_norm_max"),
        ("changes of equal norm along other shifts", "n_shifted", "shifted_max"),
    )
    return [(name, row[n], row[most]) for name, n, most in kinds if row.get(n) and row.get(most) is not None]


def best_rival(results: JsonObject, row: Row) -> Row | None:
    """The strongest rival of equal or lower rank."""
    comparison = comparison_of(results, row) or {}
    return next((rival for rival in comparison.get("rivals", []) if rival["name"] == comparison.get("best")), None)


def _refute(files: RunFiles, rows: Sequence[Row]) -> list[str]:
    """Each observation that would speak against the claim, and whether this run has made it."""
    results, found = files.interventions or {}, []
    for row in rows:
        shown = []
        if row.get("share_interval"):
            bound = f"{100 * REFUTED_SHARE:.0f} % of the ceiling with {REFUTED_N} samples or more"
            shown.append(f"an effect below {bound} (it is {interval(row['share_interval'])} %)")
        effect = row["effect"][0]
        for name, _, most in controls_of(row):
            shown.append(f"as much from {name} (at most {points(most)} of {points(effect)}{_does(most >= effect)})")
        best = best_rival(results, row)
        if best is not None:
            shown.append(
                f"as much from a rival of lower rank ({points(best['effect'][0])} of {points(effect)}{_does(bool(best.get('no_worse')))})"
            )
        found.append(f"{_named(row)}: {'; '.join(shown)}.")
    other = "another dictionary or another post-training run with another verdict"
    tried = "; the section on other dictionaries has those" if files.dictionary_seeds else "; neither was tried here"
    return [*found, f"For both: {other}{tried}."]


def _does(reached: bool) -> str:
    return ": it does" if reached else ""


def _next(files: RunFiles, rows: Sequence[Row]) -> list[str]:
    """Commands, each with what it adds. All of them take ``--run``."""
    found = []
    missing = [stage.place.command for stage in files.stages.values() if not stage.manifest]
    if missing:
        found.append(f"Finish the chain: {listing(f'`{command}`' for command in missing)}.")
    if files.quality and not files.trusted:
        found.append(
            "Train a better dictionary (a larger `train_sae.d_sae` or `train_sae.n_tokens`); an untrusted one decides nothing."
        )
    wide = [row for row in rows if row["effect"][2] - row["effect"][1] > _WIDE or row["verdict"] != SUPPORTED]
    if wide:
        smallest = min(abs(row["effect"][0]) for row in wide)
        effect = max(1, round(100 * smallest / 2))
        found.append(
            f"Narrow the intervals: `mechprobe plan-samples --effect {effect}` says how many samples half of the smaller effect needs."
        )
    if rows and not files.dictionary_seeds:
        found.append("Repeat the verdict with other dictionaries: `mechprobe run --dictionary-seeds 3`.")
    side = {
        "`mechprobe emergence` (when features appear)": files.emergence is not None,
        "`mechprobe drift` (how far the distributions moved)": files.drift.divergence is not None,
        "`mechprobe weights` (which weights moved)": files.drift.weights is not None,
        "`mechprobe probe` (which skills moved)": files.drift.probe is not None,
        "`mechprobe logprobs` (which tokens moved)": files.logprobs is not None,
    }
    todo = [name for name, done in side.items() if not done]
    if todo and not missing:
        found.append(f"Look beside the chain: {listing(todo)}.")
    return found or ["Nothing is missing here; test the claim on other models or other tasks."]
