"""``mechprobe features``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.shared_options import Shared, takes_shared_options

if TYPE_CHECKING:
    from mechprobe.features.config import NullKind
    from mechprobe.features.result import FeatureSummary
    from mechprobe.pipeline.run import Run

Crosscoder = Annotated[Path | None, typer.Option("--crosscoder", help="Crosscoder, instead of the run's.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Activation store, instead of the run's.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Stage folder outside the run. Nulls go to nulls/ beside it.")
]
Null = Annotated[
    list[str] | None,
    typer.Option(
        "--null", help="Also train and measure a null: identical, shuffled-labels or disjoint-halves. May be repeated."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", min=1, help="Also train this many further seeds, and count features found again."),
]
SEEDS = "seeds"


@takes_shared_options
def features(
    shared: Shared,
    out: Out = None,
    crosscoder: Crosscoder = None,
    cache: Cache = None,
    null: Null = None,
    seeds: Seeds = None,
) -> None:
    """Describe every feature: its class, density and contexts, and whether the crosscoder passes the quality gate.

    Without models, the cross-entropy with the reconstruction spliced in and the example texts are left out.

    With --force, the table is made again, and so are the nulls and seeds that are named.
    """
    from mechprobe.cli.printing import say_json
    from mechprobe.cli.stage_command import carry_out, in_run, say_result
    from mechprobe.cli.stage_lines import quality_lines
    from mechprobe.pipeline.plans import plan_features

    kinds = _kinds(null)
    own_inputs = crosscoder is not None or cache is not None
    run = shared.start(own_inputs=own_inputs, features=out, crosscoder=crosscoder, cache=cache)
    folder = run.layout.features
    found = carry_out(
        shared, run, "features", folder=folder, plan=lambda: plan_features(run, kinds, seeds),
        work=lambda: _measured(run, kinds, seeds),
    )  # fmt: skip
    if found is None:
        return
    analysis, nulls, stability = found
    summary = analysis.table.summary()
    if shared.as_json:
        more = {
            "nulls": {item.kind: item.to_dict() for item in nulls},
            "stability": stability.to_dict() if stability else None,
        }
        say_json({"folder": str(folder), "quality": analysis.quality.to_dict(), **summary.to_dict(), **more})
        return
    lines = [*quality_lines(analysis.quality.to_dict()), ""]
    lines.append(f"Features (n = {summary.n_features:,}; {summary.n_rows:,} tokens): {_counts(summary)}")
    if not analysis.trusted:
        lines.append(
            "The crosscoder fails the quality gate: its features are marked as untrusted wherever they are shown."
        )
    lines += [*(item.sentence for item in nulls), *([stability.sentence] if stability else [])]
    say_result(lines, folder, f"mechprobe evaluate{in_run(run)}", run=run)


def _measured(run: "Run", kinds: "list[NullKind]", seeds: int | None) -> Any:
    """Table, finished nulls, and the stability over seeds where it was measured."""
    from mechprobe.features.validation.stage import finished_nulls, finished_stability, measure_null, measure_stability

    analysis = run.features()
    run.contexts()
    shared: dict[str, Any] = {
        "crosscoder": run.layout.crosscoder, "cache": run.layout.cache, "config": run.config.features,
        "nulls": run.config.nulls, "device": run.config.device, "force": run.force,
    }  # fmt: skip
    for kind in kinds:
        measure_null(kind, out=run.layout.nulls / kind, **shared)
    of_seeds = run.layout.nulls / SEEDS
    if seeds is not None:
        measure_stability(seeds, out=of_seeds, **shared)
    return analysis, finished_nulls(run.layout.nulls), finished_stability(of_seeds)


def _counts(summary: "FeatureSummary") -> str:
    """``812 shared, 3 rl-only [1, 4]``: the interval, over sequences, where it is not a point."""
    intervals = summary.class_intervals.sequences if summary.class_intervals else {}
    parts = []
    for name, count in summary.class_counts.items():
        low, high = intervals[name][1:3] if name in intervals else (count, count)
        if count or high:
            parts.append(f"{count} {name}" + (f" [{low:.0f}, {high:.0f}]" if low != high else ""))
    return ", ".join(parts)


def _kinds(names: list[str] | None) -> "list[NullKind]":
    from typing import get_args

    from mechprobe.errors import ConfigError
    from mechprobe.features.config import NullKind

    known: tuple[NullKind, ...] = get_args(NullKind)
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--null {name!r} does not exist; take {', '.join(known)}.")
    return [kind for kind in known if kind in (names or ())]
