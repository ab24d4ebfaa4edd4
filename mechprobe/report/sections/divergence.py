"""The section on divergence of the page of behaviour and drift."""

from collections.abc import Iterable

from mechprobe.drift.divergence.result import DivergenceResult, LensToken
from mechprobe.formatting import MISSING, decimal
from mechprobe.report.sections.drift_parts import Picture, Section, Table, absent, interval_text
from mechprobe.statistics import Interval

_DIVERGENCES = ("kl", "kl_reverse", "js", "tv", "top1_agreement", "entropy_change")


def divergence_section(found: DivergenceResult | None) -> Section:
    """KL by skill as a figure, and tables by kind of text, token class and layer."""
    title = "1. Distributions: divergence from base"
    if found is None:
        return absent(title, "mechprobe drift")
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
    picture = Picture("divergence", "KL from base by skill and arm", caption)
    return Section(title, "", [], [picture], tables, found.notes)


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
        f"On {what.get(source, source)}{at}",
        ["model", "n tokens", *_DIVERGENCES],
        rows,
        notes if source == "own" else [],
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
    return Table(f"KL by token class and place ({source} text)", head, rows if len(head) > 1 else [], notes)


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
    return Table("Residual stream by layer", ["model", "layer", *metrics], rows, [" ".join(notes)], folded=True)


def _lens(found: DivergenceResult) -> Table:
    """The activation-difference lens, one row per model and layer."""
    rows = [
        [row.model, str(row.layer), decimal(row.relative_norm, 3), decimal(row.consistency), _tokens(row.promoted), _tokens(row.suppressed)]
        for row in found.lens
    ]  # fmt: skip
    note = f"Mean difference of the residuals of {found.lens_source} through the unembedding (arXiv 2510.13900)."
    head = ["model", "layer", "relative norm", "consistency", "promoted", "suppressed"]
    return Table("Activation-difference lens", head, rows, [note], folded=True)


def _tokens(tokens: Iterable[LensToken]) -> str:
    return " ".join(repr(token.token) for token in list(tokens)[:6])
