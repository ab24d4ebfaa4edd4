"""``mechprobe weights``."""

from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.drift.weights.result import AgainstNull, Group, WeightsResult

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Stage folder outside the run.")]
_MOST_MODELS, _MOST_TYPES, _MOST_PAIRS = 12, 10, 6


@takes_shared_options
def weights(shared: Shared, out: Out = None) -> None:
    """Compare the weights of every model with base's: norms, spectra, subspaces, each beside a random update of equal norm.

    The files are read tensor by tensor; no model is loaded, and adapters are not merged.
    """
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, say_result
    from mechprobe.pipeline.plans import plan_weights

    run = shared.start(weights=out)
    folder = run.layout.weights
    found = carry_out(shared, run, "weights", folder=folder, plan=lambda: plan_weights(run), work=run.weights)
    if found is None:
        return
    if shared.as_json:
        say_json({"folder": str(folder), **found.to_dict()})
        return
    say_result(weights_lines(found), folder)


def weights_lines(found: "WeightsResult") -> list[str]:
    """Tables of the updates by module type, of the pairs, and last of the models."""
    from mechprobe.cli.printing import table_lines

    names = list(found.names)
    lines = []
    if len(names) <= _MOST_MODELS // 2:
        types = {group.type: {} for name in names for group in found.models[name].types}
        for name in names:
            for group in found.models[name].types:
                types[group.type][name] = f"{_percent(group.relative_norm)} %  {_rank(group)}".rstrip()
        kept = dict(list(types.items())[:_MOST_TYPES])
        lines += ["||ΔW|| / ||W|| by module type, and mean stable rank [random]", *table_lines(kept, names)]
        lines += [f"{len(types) - len(kept)} more types in weights.json"] if len(types) > len(kept) else []
        lines.append("")
    lines += _pair_lines(found)
    rows = {name: _model_cells(found.models[name].total) for name in names[:_MOST_MODELS]}
    lines += table_lines(rows, list(next(iter(rows.values()))), corner="model")
    lines += [f"{len(names) - _MOST_MODELS} more models in weights.json"] if len(names) > _MOST_MODELS else []
    return [*lines, *_notes(found)]


def _model_cells(group: "Group") -> dict[str, str]:
    """The main numbers of one model."""
    cells = {"||ΔW||/||W||": f"{_percent(group.relative_norm)} %", "unchanged": f"{_percent(group.unchanged)} %"}
    for label, name in (
        ("stable rank", "stable_rank"), ("effective rank", "effective_rank"), ("change of σ(W) %", "sv_change"),
        ("angle °", "angle_left"), ("in top-k %", "inside"),
    ):  # fmt: skip
        factor = 100 if label.endswith("%") else 1
        cells[label] = _against(group.spectral.get(name), factor)
    return cells


def _against(item: "AgainstNull | None", factor: int = 1) -> str:
    from mechprobe.formatting import MISSING

    return MISSING if item is None else item.text(factor)


def _rank(group: "Group") -> str:
    return _against(group.spectral["stable_rank"]) if "stable_rank" in group.spectral else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _pair_lines(found: "WeightsResult") -> list[str]:
    """Cosine and overlap of updates; with many models, only those of models that are no checkpoints."""
    from mechprobe.cli.printing import table_lines

    final = [pair for pair in found.pairs if "@" not in pair.first + pair.second]
    chosen = (found.pairs if len(found.pairs) <= _MOST_PAIRS else final)[:_MOST_PAIRS]
    if not chosen:
        return []
    rows = {
        f"{pair.first}, {pair.second}": {
            "cosine": f"{pair.cosine:.3g} [±{pair.cosine_null:.1g}]" if isfinite(pair.cosine) else "-",
            "overlap left %": _against(pair.overlap.get("left"), 100),
            "overlap right %": _against(pair.overlap.get("right"), 100),
        }
        for pair in chosen
    }
    more = len(found.pairs) - len(chosen)
    return [
        *table_lines(rows, ["cosine", "overlap left %", "overlap right %"], corner="updates"),
        *([f"{more} more pairs in weights.json"] if more else []),
        "",
    ]


def _notes(found: "WeightsResult") -> Iterable[str]:
    """What the numbers are means of, and what was estimated or left out."""
    yield (
        f"n = {found.n:,} parameters in {found.n_weights:,} weights, spectral numbers are means over up to "
        f"{max(update.total.n_matrices for update in found.models.values()):,} changed matrices; [random updates of equal norm]."
    )
    if found.n_estimated:
        yield (
            f"Estimated for {found.n_estimated:,} matrices beyond {found.exact_up_to}: largest relative residual of first singular "
            f"vectors {found.error_values:.1g}, standard error of the nuclear norm up to {100 * found.error_nuclear:.1g} %."
        )
    if found.tied:
        yield "Head and embedding are one, and count once."
    for model, names in found.left_out.items():
        yield f"{model} has {len(names)} tensors that {found.base} lacks, such as {names[0]}; they are left out."
