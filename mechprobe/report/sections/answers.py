"""The five questions of a reader, answered from the run: which features, how sure, against what, what would refute it, what next."""

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.formatting import interval, listing, p_value, percent, points, short_list
from mechprobe.interventions.verdicts.rule import REFUTED_N, REFUTED_SHARE, SUPPORTED
from mechprobe.report.result import Answer, JsonObject
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.features import class_sentence
from mechprobe.report.sections.parts import counted
from mechprobe.report.sections.plain_verdict import comparison_of, controls_of, main_rows
from mechprobe.types import POOLED

Row = Mapping[str, Any]
_WIDE = 0.1
"""Width of an interval, as a share, from which the answer names `mechprobe plan-samples`."""


def answers(files: RunFiles) -> list[Answer]:
    """The five answers, in order."""
    results = files.interventions
    rows = [row for row in main_rows(results) if None not in (row.get("effect") or [None])] if results else []
    none = [_no_verdict(files)]
    return [
        Answer(question="Which features", sentences=_which(files)),
        Answer(question="How sure", sentences=_how_sure(files, rows) if rows else none),
        Answer(question="Against what", sentences=_against(results or {}, rows) if rows else ["No edit was compared with anything yet."]),
        Answer(question="What would refute it", sentences=_refute(files, rows) if rows else ["Nothing is claimed yet that could be refuted."]),
        Answer(question="What next", sentences=_next(files, rows)),
    ]  # fmt: skip


def _no_verdict(files: RunFiles) -> str:
    trust = "" if files.trusted else " The crosscoder did not pass the quality gate." if files.quality else ""
    return f"No edit was judged, so nothing here is causal.{trust}"


def _which(files: RunFiles) -> list[str]:
    selection = files.selection
    if selection is None:
        shown = f" {class_sentence(files.features)}" if files.features else ""
        return [f"None are selected yet; `{files.stages['select'].place.command}` ranks and selects them.{shown}"]
    ids = files.selected
    site = f" at {selection['site']}" if selection.get("site") else ""
    few = f"; the first are {short_list([str(feature) for feature in ids], 5)}" if ids else ""
    agnostic = len(selection["agnostic"])
    return [
        f"{counted(len(ids), 'feature')}{site}, by the {selection['ranking']} ranking{few}.",
        f"{agnostic} of them {'passes' if agnostic == 1 else 'pass'} the threshold on every selecting task ({listing(selection['tasks'])}).",
        *_sizes(files.interventions or {}),
    ]


def _sizes(results: JsonObject) -> list[str]:
    """How many of the features carry nine tenths of the ceiling, with the hosts in which they do."""
    hosts: dict[int, list[str]] = {}
    for host, row in (results.get("sizes") or {}).items():
        if row.get("90%", {}).get("size") is not None:
            hosts.setdefault(row["90%"]["size"], []).append(f"in {host}")
    return [f"The first {size} carry 90 % of the ceiling {listing(names)}." for size, names in hosts.items()]


def _how_sure(files: RunFiles, rows: Sequence[Row]) -> list[str]:
    results = files.interventions or {}
    found = []
    for row in rows:
        kind = kind_of(results, row)
        p = f", p {_p(row['p_random'])} against random sets" if row.get("p_random") is not None else ""
        found.append(
            f"{_where(row)}: a {kind} of {interval(row['effect'])} points, n = {row['n']:,}{p}. Verdict: {row['verdict']}."
        )
    trust = "passed" if files.trusted else "did not pass"
    seeds = files.dictionary_seeds
    several = str(seeds["sentence"]) if seeds else "The run has one dictionary and one post-training run."
    smallest = (results.get("smallest") or {}).get(POOLED) or {}
    limit = (
        f" Effects below {percent(smallest['effect'], 1)} points could not have been found."
        if smallest.get("effect")
        else ""
    )
    return [*found, f"The crosscoder {trust} the quality gate. {several}{limit}"]


def _p(value: Any) -> str:
    shown = p_value(value)
    return shown if shown.startswith("<") else f"= {shown}"


def kind_of(results: JsonObject, row: Row) -> str:
    """What an effect in the claimed direction is: a gain in base, a loss in the tuned model."""
    return "gain" if row["model"] == results["pair"][0] else "loss"


def _size(value: Any) -> str:
    """An effect in the claimed direction, in points, beside the word for its direction."""
    return points(value).removeprefix("+")


def _where(row: Row) -> str:
    """The model that was edited, and the edit unless it is the transplant."""
    return f"In {row['model']}" + ("" if row["edit"] == "transplant" else f" under {row['edit']}")


def _against(results: JsonObject, rows: Sequence[Row]) -> list[str]:
    """What each effect was compared with, and how much that does."""
    found = []
    for row in rows:
        shown = [f"the features {_size(row['effect'][0])}"]
        shown += [f"the whole residual {_size(row['ceiling'])}"] if row.get("ceiling") is not None else []
        shown += [f"{n} {name} at most {_size(most)}" for name, n, most in controls_of(row)]
        best, n = best_rival(results, row), n_rivals(results, row)
        if best is not None:
            shown.append(f"the best of {n} rivals of equal or lower rank {_size(best['effect'][0])} ({best['name']})")
        found.append(f"{_where(row)}, {kind_of(results, row)} in points: {', '.join(shown)}.")
    return found


def best_rival(results: JsonObject, row: Row) -> Row | None:
    """The strongest rival of equal or lower rank."""
    comparison = comparison_of(results, row) or {}
    return next((rival for rival in comparison.get("rivals", []) if rival["name"] == comparison.get("best")), None)


def n_rivals(results: JsonObject, row: Row) -> int:
    """Rivals of equal or lower rank that do not damage the model, of which `best_rival` is one."""
    comparison = comparison_of(results, row) or {"rivals": [], "rank": 0}
    ranks = [rival["rank"] for rival in comparison["rivals"] if not rival.get("damages")]
    return sum(rank is not None and rank <= comparison["rank"] for rank in ranks)


def _refute(files: RunFiles, rows: Sequence[Row]) -> list[str]:
    """What would speak against the claim, and what of it this run has found."""
    found = []
    for row in rows:
        reached, below = _competitors(files.interventions or {}, row)
        said = [
            f"{shown[:1].upper()}{shown[1:]} {verb}{'es' if len(names) == 1 else ''}{no}."
            for names, verb, no in ((reached, "reach", " it"), (below, "do", " not"))
            if (shown := listing(names))
        ]
        if said:
            kind = kind_of(files.interventions or {}, row)
            found.append(
                f"{_where(row)}, something else whose {kind} is as large as that of the features. {' '.join(said)}"
            )
    shares = [f"{interval(row['share_interval'])} % in {row['model']}" for row in rows if row.get("share_interval")]
    bound = f"An effect below {100 * REFUTED_SHARE:.0f} % of the ceiling, with {REFUTED_N} samples or more"
    tried = "" if files.dictionary_seeds else "; neither was tried here"
    return [
        *found,
        *([f"{bound}; it is {listing(shares)}."] if shares else []),
        f"Another dictionary, or another post-training run, with another verdict{tried}.",
    ]


def _competitors(results: JsonObject, row: Row) -> tuple[list[str], list[str]]:
    """The controls and the rival that reach the effect, and those that stay below it, each with its largest effect."""
    effect, reached, below = row["effect"][0], [], []
    for name, _, most in controls_of(row):
        (reached if most >= effect else below).append(f"{name} ({_size(most)} points)")
    best = best_rival(results, row)
    if best is not None:
        (reached if best.get("no_worse") else below).append(f"{best['name']} ({_size(best['effect'][0])} points)")
    return reached, below


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
