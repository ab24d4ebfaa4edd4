"""Which stages have run, and how they were made."""

from mechprobe.report.result import MissingStage, ProvenanceRow
from mechprobe.report.run_files import RunFiles, StageInfo


def missing_stages(files: RunFiles) -> list[MissingStage]:
    """Stages that are not finished, with the commands that run them."""
    return [
        MissingStage(name=s.place.name, state=s.state, command=s.place.command, folder=s.place.folder)
        for s in files.missing
    ]


def provenance_rows(files: RunFiles) -> list[ProvenanceRow]:
    """One row per stage: state, time, seed, versions, commit, model fingerprints."""
    return [_row(stage) for stage in files.stages.values()]


def _row(stage: StageInfo) -> ProvenanceRow:
    manifest = stage.manifest
    environment = manifest.get("environment", {})
    return ProvenanceRow(
        name=stage.place.name,
        state=stage.state,
        folder=stage.place.folder,
        command=stage.place.command,
        seconds=f"{manifest['seconds']:.1f}" if "seconds" in manifest else "–",
        seed=manifest.get("seed"),
        commit=(environment.get("git_commit") or "–")[:19],
        counts=manifest.get("counts", {}),
        config=manifest.get("config", {}),
        models={name: digest[:12] for name, digest in manifest.get("models", {}).items()},
        packages=environment.get("packages", {}),
    )
