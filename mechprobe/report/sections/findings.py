"""The warnings, the stages that are missing, and how each stage was made."""

import json

from mechprobe.formatting import MISSING, listing
from mechprobe.report.result import JsonObject, MissingStage, Section, Table
from mechprobe.report.run_files import RunFiles, StageInfo
from mechprobe.report.sections.parts import counted

_RUNS_MODELS = ("localize", "cache", "features", "evaluate", "select", "intervene")
"""Stages that run models, and whose settings name how."""


def warnings(files: RunFiles) -> list[str]:
    """Defects that limit what the numbers can show."""
    found = []
    if files.quality and not files.trusted:
        failures = " ".join(files.quality.get("failures", []))
        found.append(f"The crosscoder failed the quality gate, so its features are untrusted. {failures}".strip())
    failed = [name for name, value in files.nulls.items() if value.get("passed") is False]
    if failed:
        found.append(f"These null comparisons failed: {listing(failed)}. The feature classes are therefore unreliable.")
    if files.ceilings and not files.ceilings.able:
        found.append(files.ceilings.reason)
    found += [
        f"{name} was made from other interventions than the run holds now and is left out; repeat `mechprobe run` with "
        "--dictionary-seeds."
        for name in files.outdated
    ]
    return found


def missing_stages(files: RunFiles) -> list[MissingStage]:
    """Stages that are not finished, with the commands that run them."""
    return [MissingStage(**_identity(stage)) for stage in files.stages.values() if not stage.manifest]


def _identity(stage: StageInfo) -> dict[str, str]:
    place = stage.place
    return {"name": place.name, "state": stage.state, "command": place.command, "folder": place.folder}


def provenance_section(files: RunFiles) -> Section:
    """How every stage of the chain was made: state, time, seed, commit, settings, models, versions."""
    stages = list(files.stages.values())
    done = [stage.manifest for stage in stages if stage.manifest]
    seconds = sum(manifest.get("seconds", 0.0) for manifest in done)
    commits = list(dict.fromkeys(commit for manifest in done if (commit := _commit(manifest)) != MISSING))
    says = f"{len(done)} of {counted(len(stages), 'stage')} of the chain are finished; they took {seconds:,.0f} seconds"
    head = ["stage", "state", "folder", "seconds", "seed", "models ran in", "commit"]
    return Section(
        id="provenance",
        title="Provenance: how the numbers were made",
        says=says + (f" at commit {listing(commits)}." if commits else "."),
        tables=[Table(title="Stages", head=head, rows=[_provenance(stage) for stage in stages])],
        parts=[_settings(stage) for stage in stages if stage.manifest.get("config")],
    )


def _provenance(stage: StageInfo) -> list[str]:
    manifest, seed = stage.manifest, stage.manifest.get("seed")
    seconds = f"{manifest['seconds']:.1f}" if "seconds" in manifest else MISSING
    shown = MISSING if seed is None else str(seed)
    return [
        stage.place.name,
        stage.state,
        stage.place.folder,
        seconds,
        shown,
        _precision(stage.place.name, manifest),
        _commit(manifest),
    ]


def _precision(stage: str, manifest: JsonObject) -> str:
    """Dtype and attention of a stage's models. Settings name them where they are not float32 and eager attention."""
    if stage not in _RUNS_MODELS or not manifest.get("models"):
        return MISSING
    config = manifest.get("config", {})
    dtypes = {name: config.get("model_dtypes", {}).get(name, "float32") for name in manifest["models"]}
    named = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    dtype = named if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))
    return f"{dtype}{', TF32' if config.get('tf32') else ''}, {config.get('attention', 'eager')} attention"


def _commit(manifest: JsonObject) -> str:
    return (manifest.get("environment", {}).get("git_commit") or MISSING)[:19]


def _settings(stage: StageInfo) -> Section:
    """Settings, counts, model fingerprints and versions of one stage, as JSON."""
    manifest = stage.manifest
    about = {
        "settings": manifest.get("config", {}),
        "counts": manifest.get("counts", {}),
        "models": {name: digest[:12] for name, digest in manifest.get("models", {}).items()},
        "versions": manifest.get("environment", {}).get("packages", {}),
    }
    rows = [[name, json.dumps(value, ensure_ascii=False, sort_keys=True)] for name, value in about.items() if value]
    return Section(
        id=f"made-{stage.place.name}",
        title=f"{stage.place.name}: settings, counts, models, versions",
        says=f"The folder {stage.place.folder} holds the files of {stage.place.name}.",
        tables=[Table(title="Manifest", head=["part", "values"], rows=rows, folded=False)],
    )
