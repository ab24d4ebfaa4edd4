"""The section on weights of the page of behaviour and drift."""

from math import isfinite

from mechprobe.drift.weights.result import WeightsResult
from mechprobe.emergence.arms import arm_of, last_of_arms
from mechprobe.formatting import MISSING, listing
from mechprobe.report.result import Picture, Section, Table
from mechprobe.report.sections.parts import digits, null_text

_SPECTRAL = {
    "stable_rank": ("stable rank", 1), "effective_rank": ("effective rank", 1), "sv_change": ("change of σ(W) %", 100),
    "angle_left": ("principal angle °", 1), "inside": ("inside top-k %", 100),
}  # fmt: skip


def weights_section(found: WeightsResult | None) -> Section:
    """The update of every model with its null, and pairs of updates."""
    title = "Weights: the update ΔW from base"
    if found is None:
        return Section(id="weights", title=title, command="mechprobe weights")
    totals = {name: found.models[name].total for name in found.names}
    models = Table(
        title="Updates of all weights",
        folded=False,
        head=["model", "‖ΔW‖/‖W‖ %", "unchanged %", "below bf16 %", "sign flips %", *(label for label, _ in _SPECTRAL.values())],
        rows=[
            [
                name, digits(100 * total.relative_norm), digits(100 * total.unchanged), digits(100 * total.below_bf16),
                digits(100 * total.sign_flips),
                *(null_text(total.spectral.get(key), factor) for key, (_, factor) in _SPECTRAL.items()),
            ]
            for name, total in totals.items()
        ],
        notes=[
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
        Picture(name="updates", title="Relative norm of the update by layer and module type",
                caption="Frobenius norm of the update over that of base's weight, in percent, by layer and module type."),
        Picture(name="update_ranks", title="Rank and place of the update by module type",
                caption="Stable rank of the update, and its share inside base's top singular subspaces on both sides. Grey: the range of random "
                "updates of the same shape and norm. Below the grey marks on the left, an update has fewer directions than chance."),
    ]  # fmt: skip
    sizes = listing(f"{digits(100 * totals[name].relative_norm)} % for {name}" for name in last_of_arms(found.names))
    says = f"The update of all weights has, of the norm of {found.base}'s weights, {sizes}." if sizes else ""
    return Section(
        id="weights", title=title, says=says, paragraphs=text, pictures=pictures, tables=[models, *_pairs(found)]
    )


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
            f"{pair.first}, {pair.second}",
            f"{digits(pair.cosine)} [±{pair.cosine_null:.1g}]" if isfinite(pair.cosine) else MISSING,
            null_text(pair.overlap.get("left"), 100), null_text(pair.overlap.get("right"), 100),
        ]
        for pair in shown
    ]  # fmt: skip
    note = (
        "Cosine of the updates, with the spread against a random one; mean squared cosine of the angles between their top subspaces, "
        "with the range against random ones."
    )
    more = len(found.pairs) - len(shown)
    notes = [note, *([f"Further pairs ({more}) are in weights.json."] if more else [])]
    head = ["updates", "cosine", "overlap left %", "overlap right %"]
    return [Table(title="Pairs of updates", head=head, rows=rows, notes=notes)]
