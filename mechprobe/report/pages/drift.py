"""The page of behaviour and drift: divergence, skill profiles, weights, and what drift goes along with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.probe.profile import Norm
from mechprobe.drift.probe.result import CLAIM_NOTE, ProbeResult
from mechprobe.drift.weights.result import AgainstNull, WeightsResult
from mechprobe.emergence.arms import arm_of, last_of_arms
from mechprobe.formatting import MISSING, bracketed, decimal, p_value
from mechprobe.report.pages.templates import environment
from mechprobe.report.run_files import RunFiles
from mechprobe.statistics import Interval

_DIVERGENCES = ("kl", "kl_reverse", "js", "tv", "top1_agreement", "entropy_change")
_SPECTRAL = {
    "stable_rank": ("stable rank", 1), "effective_rank": ("effective rank", 1), "sv_change": ("change of σ(W) %", 100),
    "angle_left": ("principal angle °", 1), "inside": ("inside top-k %", 100),
}  # fmt: skip


class Table(NamedTuple):
    """A table below its title, with notes after it; a folded one is closed until it is clicked."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()
    folded: bool = False


class Picture(NamedTuple):
    """A figure by its name in `mechprobe.report.figures.drift.draw_drift`."""

    name: str
    alt: str
    caption: str


class Section(NamedTuple):
    """A section; ``command`` makes its stage where that has not run, and is empty otherwise."""

    title: str
    command: str
    paragraphs: list[str]
    pictures: list[Picture]
    tables: list[Table]


def drift_page(files: RunFiles, pictures: Mapping[str, str]) -> str | None:
    """The page as HTML; None if none of its stages has run.

    Args:
        files: The files of the run.
        pictures: Name → base64 of a figure; figures that are not there are left out.
    """
    found = files.drift
    if not found.folders:
        return None
    sections: list[Section] = [
        _divergence(found.divergence), _profiles(found.probe), _weights(found.weights), _together(found.probe),
    ]  # fmt: skip
    return environment().get_template("drift.html.j2").render(
        name=files.name, base=found.base or files.base, sections=sections, figures=dict(pictures)
    )  # fmt: skip


def _absent(title: str, command: str) -> Section:
    return Section(title, command, [], [], [])


def _divergence(found: DivergenceResult | None) -> Section:
    title = "1. Distributions: divergence from base"
    if found is None:
        return _absent(title, "mechprobe drift")
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
    return Section(title, "", [*found.notes], [picture], tables)


def _divergence_table(found: DivergenceResult, source: str, temperature: float | None) -> Table:
    """One row per model on one kind of text."""
    rows = []
    for model in found.models:
        cells = {row.metric: row for row in found.find(model=model, source=source, temperature=temperature)}
        if not cells:
            continue
        n = max((cell.n for cell in cells.values()), default=0)
        rows.append([model, f"{n:,}", *(_plain(cells[m].interval) if m in cells else MISSING for m in _DIVERGENCES)])
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
                    _plain(min(matching, key=lambda row: row.temperature or 0.0).interval) if matching else MISSING
                )
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
            *(MISSING if cell is None else _plain(Interval(cell.value, cell.low, cell.high, cell.n)) for cell in got),
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


def _tokens(tokens: Iterable[object]) -> str:
    return " ".join(repr(getattr(token, "token", "")) for token in list(tokens)[:6])


def _profiles(found: ProbeResult | None) -> Section:
    title = "2. Behaviour: skill profiles over checkpoints"
    if found is None:
        return _absent(title, "mechprobe probe")
    behaviour = found.behaviour["right"]
    n = ", ".join(f"{skill} {count:,}" for skill, count in behaviour.skills.items())
    scores = Table(
        "Scores in %, chance-corrected, with 95 % intervals",
        ["model", *behaviour.skills],
        [[model, *(bracketed(score.corrected) for score in row.values())] for model, row in behaviour.profiles.items()],
        [f"n: {n} items."],
    )
    points = [(arm, point) for arm, course in behaviour.arms.items() for point in course.points]
    drift = Table(
        "Distance from base, L1 over skills",
        ["model", "training done %", "drift", "noise alone", "skills lost", "imbalance", "jaggedness"],
        [
            [
                point.model, f"{100 * point.progress:.0f}", _norm(point.drift_l1), f"< {point.drift_l1.null:.2f}",
                _norm(point.lost), _norm(point.imbalance), _norm(point.jaggedness),
            ]
            for _, point in points
        ],
        [
            "Intervals cover at least 95 %; the lower end is 0 where noise alone can give the number. Skills lost: sum over the skills "
            "of how far each is below base. Imbalance: standard deviation of the gains; jaggedness: their mean distance from their mean."
        ],
    )  # fmt: skip
    collapses = [
        f"{arm}: {item.skill} falls below base ({item.kind}: {', '.join(item.checkpoints)})"
        + ("." if item.confirmed else "; not confirmed over all skills and checkpoints at once.")
        for arm, course in behaviour.arms.items()
        for item in course.collapses
    ]
    caption = "Score above chance of every skill over training, with 95 % intervals over items. All arms begin at base."
    pictures = [Picture("profiles", "Skill profiles over checkpoints", caption)]
    text = collapses or ["No skill falls below base by more than delta and two standard errors."]
    return Section(title, "", [*text, CLAIM_NOTE], pictures, [scores, drift, *_probes(found)])


def _probes(found: ProbeResult) -> list[Table]:
    """Linear probes and the use of features, where they were measured."""
    tables = []
    if found.linear:
        rows = [
            [item.model, item.site, item.position, item.target, _share(item.accuracy), _share(item.control), _percent(item.selectivity), item.held_out]
            for item in found.linear
        ]  # fmt: skip
        head = [
            "model",
            "site",
            "position",
            "target",
            "balanced accuracy %",
            "shuffled labels %",
            "selectivity",
            "held out",
        ]
        tables.append(Table("Linear probes of the residual stream", head, rows, folded=True))
    if found.use:
        rows = [
            [item.model, item.skill, f"{100 * item.density:.2g} %", f"{item.n_features:,}", _norm(item.drift), decimal(item.across), decimal(item.split_half)]
            for item in found.use
        ]  # fmt: skip
        head = ["model", "skill", "density", "active features", "drift of use", "between halves", "base between halves"]
        tables.append(Table("Use of crosscoder features", head, rows, folded=True))
    return tables


def _weights(found: WeightsResult | None) -> Section:
    title = "3. Weights: the update ΔW from base"
    if found is None:
        return _absent(title, "mechprobe weights")
    totals = {name: found.models[name].total for name in found.names}
    models = Table(
        "Updates of all weights",
        ["model", "‖ΔW‖/‖W‖ %", "unchanged %", "below bf16 %", "sign flips %", *(label for label, _ in _SPECTRAL.values())],
        [
            [
                name, _digits(100 * total.relative_norm), _digits(100 * total.unchanged), _digits(100 * total.below_bf16),
                _digits(100 * total.sign_flips),
                *(_against(total.spectral.get(key), factor) for key, (_, factor) in _SPECTRAL.items()),
            ]
            for name, total in totals.items()
        ],
        [
            f"{found.n:,} parameters in {found.n_weights:,} weights. Spectral numbers are means over the changed matrices, with the range "
            f"of random updates of equal norm in brackets; k = {found.top_k}. Weights have no sampling error: the range is that of the null."
        ],
    )  # fmt: skip
    text = []
    if found.n_estimated:
        text.append(
            f"The singular values of {found.n_estimated:,} matrices were estimated: relative residual up to {found.error_values:.1g}, "
            f"standard error of the nuclear norm up to {100 * found.error_nuclear:.1g} %."
        )
    pictures = [
        Picture("updates", "Relative norm of the update by layer and module type",
                "Frobenius norm of the update over that of base's weight, in percent, by layer and module type."),
        Picture("update_ranks", "Rank and place of the update by module type",
                "Stable rank of the update, and its share inside base's top singular subspaces on both sides. Grey: the range of random "
                "updates of the same shape and norm. Below the grey marks on the left, an update has fewer directions than chance."),
    ]  # fmt: skip
    return Section(title, "", text, pictures, [models, *_pairs(found)])


def _pairs(found: WeightsResult) -> list[Table]:
    """The last models of the arms against each other, and every checkpoint against the last one of its arm."""
    last = set(last_of_arms(found.names))
    shown = [
        pair
        for pair in found.pairs
        if {pair.first, pair.second} <= last
        or (arm_of(pair.first) == arm_of(pair.second) and last & {pair.first, pair.second})
    ]
    if not shown:
        return []
    rows = [
        [
            f"{pair.first}, {pair.second}", f"{_digits(pair.cosine)} [±{pair.cosine_null:.1g}]",
            _against(pair.overlap.get("left"), 100), _against(pair.overlap.get("right"), 100),
        ]
        for pair in shown
    ]  # fmt: skip
    note = (
        "Cosine of the updates, with the spread against a random one; mean squared cosine of the angles between their top subspaces, "
        "with the range against random ones."
    )
    more = len(found.pairs) - len(shown)
    notes = [note, *([f"Further pairs ({more}) are in weights.json."] if more else [])]
    return [Table("Pairs of updates", ["updates", "cosine", "overlap left %", "overlap right %"], rows, notes)]


def _together(found: ProbeResult | None) -> Section:
    title = "4. Does behaviour drift along with divergence or weights?"
    if found is None:
        return _absent(title, "mechprobe probe")
    caption = "Every mark is a checkpoint, joined in order of training. Bars: intervals of the drift of at least 95 %."
    pictures = [Picture("drift_against", "Drift against divergence and weights", caption)]
    rows = [
        [item.number, item.arm, "step removed" if item.detrended else "as it is", decimal(item.rho), p_value(item.p), p_value(item.p_holm), str(item.n)]
        for item in found.correlations
    ]  # fmt: skip
    head = ["number", "arm", "step", "Spearman", "p", "p (Holm)", "checkpoints"]
    note = "Permutation p. Everything grows with the step, so the rows with the step removed are the ones to read. Fewer than 6 checkpoints: no claim."
    tables = [Table("Correlation of drift with each number", head, rows, [note])] if rows else []
    text = [*found.notes]
    if not any(found.numbers.values()):
        text.append(
            "Neither `mechprobe drift` nor `mechprobe weights` had run when `mechprobe probe` did, so nothing is correlated."
        )
    return Section(title, "", text, pictures, tables)


def _plain(item: Interval) -> str:
    """``0.153 [0.13, 0.18]``."""
    if not math.isfinite(item.value):
        return MISSING
    ends = f" [{item.low:.2g}, {item.high:.2g}]" if math.isfinite(item.low) else ""
    return f"{item.value:.3g}{ends}"


def _share(item: Interval) -> str:
    return bracketed(item)


def _norm(item: Norm) -> str:
    value, low, high = item.value, item.low, item.high
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(value) else MISSING


def _percent(value: float) -> str:
    return f"{100 * value:+.0f}" if math.isfinite(value) else MISSING


def _digits(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else MISSING


def _against(item: AgainstNull | None, factor: int) -> str:
    """``3.1 [40, 42]``: a number with the range of its null."""
    if item is None or not math.isfinite(item.value):
        return MISSING
    value, low, high = (f"{factor * part:.3g}" for part in (item.value, item.low, item.high))
    return f"{value} [{low}, {high}]"
