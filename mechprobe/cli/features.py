"""``mechprobe features``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options

if TYPE_CHECKING:
    from mechprobe.features.config import NullKind
    from mechprobe.run_config import RunConfig

Crosscoder = Annotated[Path, typer.Option("--crosscoder", help="Folder written by `mechprobe train-sae`.")]
Cache = Annotated[Path, typer.Option("--cache", help="Activation store, written by `mechprobe cache`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder; nulls go into nulls/ beside it.")]
Null = Annotated[
    list[str] | None,
    typer.Option("--null", help="Train and read a null too: identical, shuffled-labels, disjoint-halves; repeatable."),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=1, help="Train so many further seeds; how much do they find again?")
]
NULLS, SEEDS = "nulls", "seeds"


def features(
    out: Out = Path("features"),
    crosscoder: Crosscoder = Path("crosscoder"),
    cache: Cache = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    null: Null = None,
    seeds: Seeds = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Whose is each feature, how often does it fire, is the crosscoder good enough: table, quality gate, examples, nulls.

    Without --models the cross-entropy with the reconstruction spliced in and the example texts are left out. --force makes
    the table again, and the nulls and seeds that are named.
    """
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings

    settings = load_settings(config, set_, models=models, device=device)
    kinds = _kinds(null)
    folders = {"crosscoder": crosscoder, "cache": cache}
    if dry_run:
        say("\n".join(_plan(settings, folders, kinds, seeds)))
        return

    from mechprobe.cli.summary import quality_lines
    from mechprobe.features.stage import analyze_features
    from mechprobe.features.validation.nulls import finished_nulls, measure_null
    from mechprobe.features.validation.stability import Stability, measure_stability

    family = settings.family(trust_remote_code=trust_remote_code) if settings.models else None
    found = analyze_features(
        **folders, out=out, family=family, config=settings.features, device=settings.device, force=force
    )
    shared: dict[str, Any] = {
        **folders, "config": settings.features, "nulls": settings.nulls, "device": settings.device, "force": force
    }  # fmt: skip
    beside = out.absolute().parent / NULLS
    for kind in kinds:
        measure_null(kind, out=beside / kind, **shared)
    if seeds is not None:
        measure_stability(seeds, out=beside / SEEDS, **shared)
    nulls = finished_nulls(beside)
    stability = Stability.load(beside / SEEDS) if (beside / SEEDS / "manifest.json").is_file() else None
    summary = found.table.summary()
    if as_json:
        more = {
            "nulls": {item.kind: item.value for item in nulls},
            "stability": stability.value if stability else None,
        }
        say_json({"folder": str(out), "quality": found.quality, **summary, **more})
        return
    for line in quality_lines(found.quality):
        say(line)
    say(f"\nFeatures (n = {summary['n_features']:,}; {summary['n_rows']:,} tokens): {_counts(summary)}")
    if not found.trusted:
        say("Below the gate: these features are untrusted, and marked so wherever they are shown.")
    for sentence in [*(item.sentence for item in nulls), *([stability.sentence] if stability else [])]:
        say(sentence)
    say(f"\nWritten to {out}\nNext: mechprobe evaluate, then mechprobe select")


def _counts(summary: dict[str, Any]) -> str:
    """``812 shared, 3 rl-only [1, 4]``: the interval, over sequences, where it is not a point."""
    intervals = (summary["class_intervals"] or {}).get("sequences", {})
    parts = []
    for name, count in summary["class_counts"].items():
        low, high = (intervals.get(name) or (count, count, count, 0))[1:3]
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


def _plan(settings: "RunConfig", folders: dict[str, Path], kinds: "list[NullKind]", seeds: int | None) -> list[str]:
    """What would be read and trained."""
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.features.validation.nulls import N_DICTIONARIES
    from mechprobe.features.validation.retrain import Recipe
    from sae_training import Crosscoder as Dictionary

    names = Dictionary.load(folders["crosscoder"]).model_names
    store = ActivationStore.open(folders["cache"], models=names)
    n_rows = min(store.n_rows, settings.features.max_rows or store.n_rows)
    said = "with" if settings.models else "without"
    lines = [f"{n_rows:,} rows × {len(names) + 1} read-outs, {said} the spliced loss; nothing was written."]
    wanted = {f"--null {kind}": N_DICTIONARIES[kind] for kind in kinds}
    if seeds is not None:
        wanted[f"--seeds {seeds}"] = seeds
    for label, n_dictionaries in wanted.items():
        lines.append(f"{label}: {Recipe.of(folders['crosscoder']).cost(n_dictionaries, n_rows, settings.nulls)}.")
    return lines
