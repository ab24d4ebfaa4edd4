"""``mechprobe features``."""

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options

Crosscoder = Annotated[Path, typer.Option("--crosscoder", help="Folder written by `mechprobe train-sae`.")]
Cache = Annotated[Path, typer.Option("--cache", help="Activation store, written by `mechprobe cache`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Stage folder.")]


def features(
    out: Out = Path("features"),
    crosscoder: Crosscoder = Path("crosscoder"),
    cache: Cache = Path("cache"),
    config: options.Config = None,
    set_: options.Set = None,
    models: options.Models = None,
    device: options.Device = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Whose is each feature, how often does it fire, is the crosscoder good enough: table, quality gate, examples.

    Without --models the cross-entropy with the reconstruction spliced in and the example texts are left out.
    """
    from mechprobe.activations import ActivationStore
    from mechprobe.cli.printing import say, say_json
    from mechprobe.cli.settings import load_settings

    settings = load_settings(config, set_, models=models, device=device)
    if dry_run:
        from sae_training import Crosscoder as Dictionary

        names = Dictionary.load(crosscoder).model_names
        store = ActivationStore.open(cache, models=names)
        said = "with" if settings.models else "without"
        say(f"{store.n_rows:,} rows × {len(names) + 1} read-outs, {said} the spliced loss; nothing was written.")
        return

    from mechprobe.cli.summary import quality_lines
    from mechprobe.features.stage import analyze_features

    family = settings.family(trust_remote_code=trust_remote_code) if settings.models else None
    found = analyze_features(
        crosscoder, cache, out=out, family=family, config=settings.features, device=settings.device, force=force
    )
    summary = found.table.summary()
    if as_json:
        say_json({"folder": str(out), "quality": found.quality, **summary})
        return
    for line in quality_lines(found.quality):
        say(line)
    counts = ", ".join(f"{count} {name}" for name, count in summary["class_counts"].items() if count)
    say(f"\nFeatures (n = {summary['n_features']:,}; {summary['n_rows']:,} tokens): {counts}")
    if not found.trusted:
        say("Below the gate: these features are untrusted, and marked so wherever they are shown.")
    say(f"\nWritten to {out}\nNext: mechprobe evaluate, then mechprobe select")
