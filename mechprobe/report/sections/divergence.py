"""The section on divergence of the page of behaviour and drift."""

from collections.abc import Iterable

from mechprobe.drift.divergence.result import DivergenceResult, LensToken
from mechprobe.emergence.arms import last_of_arms
from mechprobe.formatting import MISSING, decimal, listing
from mechprobe.report.result import Picture, Section, Table
from mechprobe.report.sections.parts import interval_text
from mechprobe.statistics import Interval

_DIVERGENCES = ("kl", "kl_reverse", "js", "tv", "top1_agreement", "entropy_change")


def divergence_section(found: DivergenceResult | None) -> Section:
    """KL by skill as a figure, and tables by kind of text, token class and layer."""
    title = "Distributions: divergence from base"
    if found is None:
        return Section(id="divergence", title=title, command="mechprobe drift")
    caption = (
        "Mean KL over predicted tokens, exact over the whole vocabulary, with 95 % bootstrap intervals over sequences. One mark for "
        "the last model of each arm."
    )
    rows = found.find(metric="kl")
    order = sorted(
        {(row.source, row.temperature) for row in rows}, key=lambda item: (item[0] != "own", item[0], item[1] or 0.0)
    )
    tables = [_divergence_table(found, source, temperature) for source, temperature in order]
    tables += [table for table in (_by_class(found), _layers(found), _lens(found)) if table.rows]
    picture = Picture(name="divergence", title="KL from base by skill and arm", caption=caption)
    return Section(
        id="divergence",
        title=title,
        says=divergence_sentence(found),
        pictures=[picture],
        tables=tables,
        notes=list(found.notes),
    )


def divergence_sentence(found: DivergenceResult) -> str:
    """KL from base of the last model of every arm on its own text; empty where none was measured."""
    sources = list(dict.fromkeys(row.source for row in found.find(metric="kl")))
    if not sources:
        return ""
    source = "own" if "own" in sources else sources[0]
    shown = []
    for model in last_of_arms(found.models):
        rows = found.find(metric="kl", model=model, source=source)
        if rows:
            row = min(rows, key=lambda each: each.temperature or 0.0)
            shown.append(f"{interval_text(row.interval)} for {model} (n = {row.n:,} tokens)")
    text = {"own": "its own text", "prompt": "prompts"}.get(source, f"the text of {source}")
    return f"KL from {found.base}, in nats per token on {text}, is {listing(shown)}." if shown else ""


def _divergence_table(found: DivergenceResult, source: str, temperature: float | None) -> Table:
    """One row per model on one kind of text."""
    rows = []
    for model in found.models:
        cells = {row.metric: row for row in found.find(model=model, source=source, temperature=temperature)}
        if not cells:
            continue
        n = max(cell.n for cell in cells.values())
        rows.append(
            [model, f"{n:,}", *(interval_text(cells[m].interval) if m in cells else MISSING for m in _DIVERGENCES)]
        )
    at = "" if temperature is None else f" at temperature {temperature:g}"
    what = {
        "own": "own continuations",
        "gold": "reference responses",
        "base": "continuations of base",
        "prompt": "prompts",
    }
    notes = [" ".join(f"{metric}: {found.rules[metric]}" for metric in _DIVERGENCES if metric in found.rules)]
    return Table(
        title=f"On {what.get(source, source)}{at}",
        head=["model", "n tokens", *_DIVERGENCES],
        rows=rows,
        notes=notes if source == "own" else [],
        folded=source != "own",
    )


def _by_class(found: DivergenceResult) -> Table:
    """KL by token class and by place in the response, on own text where there is some."""
    sources = list(dict.fromkeys(row.source for row in found.find(metric="kl", by="token_class")))
    source = "own" if "own" in sources else next(iter(sources), "")
    groups = {
        by: list(dict.fromkeys(row.group for row in found.find(metric="kl", source=source, by=by)))
        for by in ("token_class", "bucket")
    }
    rows = []
    for model in found.models:
        cells = []
        for by, names in groups.items():
            for group in names:
                matching = found.find(metric="kl", model=model, source=source, by=by, group=group)
                cells.append(
                    interval_text(min(matching, key=lambda row: row.temperature or 0.0).interval)
                    if matching
                    else MISSING
                )
        if set(cells) - {MISSING}:
            rows.append([model, *cells])
    head = ["model", *(group for names in groups.values() for group in names)]
    notes = [found.rules[name] for name in ("token_classes", "buckets") if name in found.rules]
    title = f"KL by token class and place ({source} text)"
    return Table(title=title, head=head, rows=rows if len(head) > 1 else [], notes=notes)


def _layers(found: DivergenceResult) -> Table:
    """Distance of residuals and CKA, one row per model and layer."""
    metrics = list(dict.fromkeys(row.metric for row in found.layers))
    cells = {(row.model, row.layer, row.metric): row for row in found.layers}
    places = list(dict.fromkeys((row.model, row.layer) for row in found.layers))
    rows = []
    for model, layer in places:
        got = [cells.get((model, layer, metric)) for metric in metrics]
        rows.append([
            model, str(layer),
            *(MISSING if cell is None else interval_text(Interval(cell.value, cell.low, cell.high, cell.n)) for cell in got),
        ])  # fmt: skip
    notes = [f"{metric}: {found.rules[metric]}" for metric in metrics if metric in found.rules]
    head = ["model", "layer", *metrics]
    return Table(title="Residual stream by layer", head=head, rows=rows, notes=[" ".join(notes)])


def _lens(found: DivergenceResult) -> Table:
    """The activation-difference lens, one row per model and layer."""
    rows = [
        [row.model, str(row.layer), decimal(row.relative_norm, 3), decimal(row.consistency), _tokens(row.promoted), _tokens(row.suppressed)]
        for row in found.lens
    ]  # fmt: skip
    note = f"Mean difference of the residuals of {found.lens_source} through the unembedding (arXiv 2510.13900)."
    head = ["model", "layer", "relative norm", "consistency", "promoted", "suppressed"]
    return Table(title="Activation-difference lens", head=head, rows=rows, notes=[note])


def _tokens(tokens: Iterable[LensToken]) -> str:
    return " ".join(repr(token.token) for token in list(tokens)[:6])
